"""Short and long runs: the whole time with the default engine over the better of eager lanes and the loop by hand.

    python benchmarks/short_runs.py [--models lr,mlp,cnn,lstm] [--rounds 5,50,500] [--repeats 3] [--seconds 60] [--cold]
                                    [--json FILE]

A run that chooses by itself must not choose badly: not wait for a compiler or for worker processes that it has no use
for, and not measure longer than that saves. The workload is that of benchmarks/README.md, without a store. Timed are
whole processes, from their start to their end: imports, data, measuring, all rounds, closing.

auto   insitu with default settings
lanes  insitu with ``Vectorized(compile=False)``
loop   the sequential PyTorch loop on one thread

The three take turns, ``--repeats`` times, whoever is first changing. A process that has trained for ``--seconds`` stops
after that round, though it was told the full number, on which its choices depend; the rest is its time so far and the
median of the last third of its rounds for each that is missing, and marked ``*``. Its end must then lie behind whatever
it was to choose: a run whose workers come later than that looks slower than it is.

``--cold``: empty caches of what was measured and compiled before, for every process; else those of this user.
The ratio is auto's time over the better of the two others of the same turn, the median of the turns. Exit status 1
where one is above 1.05.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

WAYS = ("auto", "lanes", "loop")
MODELS = ("lr", "mlp", "cnn", "lstm")
FEWEST = 6
"""Rounds that are run at least, however long they take."""
ENOUGH = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", default="5,50,500")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.models, int(given.rounds), given.seconds)
        return
    found, worst = [], 0.0
    print(f"{'model':<6}{'rounds':>7}" + "".join(f"{way + ' s':>11}" for way in WAYS) + f"{'ratio':>8}  turns")
    for name in given.models.split(","):
        for rounds in map(int, given.rounds.split(",")):
            row = compared(name, rounds, given)
            found.append(row)
            worst = max(worst, row["ratio"])
            print(line(row), flush=True)
    from insitu.bench.machine import describe, sentence  # torch, which children must not wait for

    print(sentence(describe()) + ("; cold caches" if given.cold else ""))
    if given.json:
        given.json.write_text(json.dumps({"machine": describe(), "cold": given.cold, "rows": found}, indent=1))
    sys.exit(worst > ENOUGH)


def compared(name: str, rounds: int, given: argparse.Namespace) -> dict[str, Any]:
    """One model and length: each way in turn, so often."""
    turns = []
    for turn in range(given.repeats):
        order = WAYS[turn % 3 :] + WAYS[: turn % 3]
        turns.append({way: whole(way, name, rounds, given) for way in order})
    ratios = [turn["auto"]["seconds"] / min(turn[way]["seconds"] for way in WAYS[1:]) for turn in turns]
    return {"model": name, "rounds": rounds, "ratio": statistics.median(ratios), "ratios": ratios, "turns": turns}


def line(row: dict[str, Any]) -> str:
    def cell(way: str) -> str:
        seconds = statistics.median(turn[way]["seconds"] for turn in row["turns"])
        partly = any(turn[way]["rounds"] < row["rounds"] for turn in row["turns"])
        return f"{seconds:.1f}{'*' if partly else ' '}"

    cells = "".join(f"{cell(way):>11}" for way in WAYS)
    return f"{row['model']:<6}{row['rounds']:>7}{cells}{row['ratio']:>8.2f}  " + " ".join(
        f"{r:.2f}" for r in row["ratios"]
    )


def whole(way: str, name: str, rounds: int, given: argparse.Namespace) -> dict[str, Any]:
    """One process: its seconds, for all rounds, and what it chose."""
    command = [sys.executable, __file__, "--child", way, "--models", name, "--rounds", str(rounds)]
    command += ["--seconds", str(given.seconds)]
    with tempfile.TemporaryDirectory() as folder:
        cold = {"XDG_CACHE_HOME": folder, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"} if given.cold else {}
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, **cold})
        seconds = time.perf_counter() - began
    told = json.loads(done.stdout.splitlines()[-1])
    each = told.pop("each")
    missing = rounds - len(each)
    told |= {"rounds": len(each), "took": seconds}
    told["seconds"] = seconds + missing * statistics.median(each[-max(1, len(each) // 3) :])
    return told


class Enough(BaseException):
    """Ends a run early. No Exception, since a run leaves out observers that raise one."""


class Rounds:
    """How long each round took; says when enough were run."""

    def __init__(self, rounds: int, seconds: float) -> None:
        self.each: list[float] = []
        self._rounds, self._seconds = rounds, seconds
        self._began = self._last = time.perf_counter()

    def another(self) -> bool:
        """A round is over: whether the next one is to be run."""
        now = time.perf_counter()
        self.each.append(now - self._last)
        self._last = now
        done = len(self.each)
        return done < self._rounds and (done < FEWEST or now - self._began < self._seconds)


def child(way: str, name: str, rounds: int, seconds: float) -> None:
    """A whole run, which tells what its rounds took."""
    from insitu.bench import models

    data = models.data(name)
    if way == "loop":
        print(json.dumps({"each": by_hand(name, data, Rounds(rounds, seconds))}))
        return
    import insitu
    from insitu.algorithms.fedavg import FedAvg
    from insitu.bench.workload import BATCH, LR
    from insitu.data.clients import Clients
    from insitu.engines.vectorized import Vectorized
    from insitu.learners.torch import TorchLearner

    plan = insitu.Plan(FedAvg(lr=LR, batch_size=BATCH), TorchLearner(models.make(name)),
                       cohort=insitu.Uniform(data.cohort), evaluate_every=0)  # fmt: skip
    clients = Clients.from_arrays(data.x, data.y, data.parts())
    engine = None if way == "auto" else Vectorized(compile=False)
    measured = Rounds(rounds, seconds)
    said: list[str] = []

    def note(event: Any) -> None:
        kind = type(event).__name__
        if kind == "Notice":
            said.append(f"after round {event.round}: {event.text}")
        if kind == "RoundCommitted" and not measured.another() and event.round < rounds:
            raise Enough

    with suppress(Enough):
        insitu.run(plan, clients, rounds=rounds, engine=engine, store=None, observers=[note])
    print(json.dumps({"each": measured.each, "notices": said}))


def by_hand(name: str, data: Any, measured: Rounds) -> list[float]:
    """The loop, on the same clients."""
    import torch

    from insitu.bench import loop, models
    from insitu.rounds.cohort import Uniform

    torch.set_num_threads(1)
    model, cohort = models.make(name), Uniform(data.cohort)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    while True:
        places = cohort.sample(len(data), 0, len(measured.each) + 1).tolist()
        state, _ = loop.round(model, state, loop.shuffled(data, places))
        if not measured.another():
            return measured.each


if __name__ == "__main__":
    main()
