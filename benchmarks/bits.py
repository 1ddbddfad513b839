"""What it costs that the number of workers does not show in the answer, not by one bit.

    python benchmarks/bits.py [--models lr,mlp] [--rounds 30] [--lanes N] [--same 3] [--json FILE]

So that 1, 2 and 4 workers give the same bits, a round's clients are cut into blocks whose size the plan alone decides
(a quarter of the cohort), each block is summed by itself, and the sums are merged in the blocks' order. Without that,
one worker would take the whole cohort as one block and add up whatever comes: the lanes could be packed from all
clients, longest first, and there would be one sum. The workload is that of benchmarks/README.md.

cost  two processes with the vectorised engine, one with the plan's blocks and one with a single block, do a round of
      the same clients each in turn; the median of the ratios of the pairs (wall), and the ratio of all CPU. Each
      chooses its lanes by itself, as a run does, unless ``--lanes`` gives them: on a busy machine the choice wanders
same  a run of ``--same`` rounds with 1, 2 and 4 worker processes: whether its parameters are equal, bit by bit; 0: not

Waiting for a block that an earlier one must precede is not in the cost: workers go on with later blocks meanwhile.
Exit status 1 where the bits differ, or a model's CPU is above 1.05.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.bench import models
from insitu.bench.child import Child
from insitu.bench.entrant import Line
from insitu.bench.machine import describe, sentence
from insitu.bench.workload import BATCH, LR, Workload
from insitu.core import tree
from insitu.data.clients import Clients
from insitu.engines.processes import Processes
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner

WAYS = ("blocks", "one block")
WARMUP = 3
"""Rounds of each that are not counted."""
ENOUGH = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="lr,mlp")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--lanes", type=int)
    parser.add_argument("--same", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        train(given.models, given.child, given.rounds, given.lanes)
        return
    print(sentence(describe()))
    found, good = {}, True
    for name in given.models.split(","):
        figures = found[name] = cost(name, given.rounds, given.lanes)
        low, high = figures["quartiles"]
        print(
            f"{name:<5} blocks over one block: wall {figures['wall']:.3f} ({low:.3f}-{high:.3f}), "
            f"CPU {figures['cpu']:.3f}; {figures['seconds']['blocks']:.3f} s a round",
            flush=True,
        )
        for way, notices in figures["notices"].items():
            print(f"      {way}: {'; '.join(notices) or 'lanes as given'}")
        good &= figures["cpu"] <= ENOUGH
        if given.same:
            figures["parameters"] = {workers: parameters(name, workers, given.same) for workers in (1, 2, 4)}
            equal = len(set(figures["parameters"].values())) == 1
            good &= equal
            print(
                f"{name:<5} 1, 2 and 4 workers after {given.same} rounds: {'the same bits' if equal else 'DIFFERENT'}"
            )
    if given.json:
        given.json.write_text(json.dumps({"machine": describe(), "rounds": given.rounds, **found}, indent=1))
    sys.exit(not good)


def cost(name: str, rounds: int, lanes: int | None) -> dict[str, Any]:
    """Rounds of both ways in turn."""
    command = [sys.executable, __file__, "--models", name, "--rounds", str(rounds)]
    command += [] if lanes is None else ["--lanes", str(lanes)]
    with ExitStack() as stack:
        both = [stack.enter_context(Child(way, [*command, "--child", way], {})) for way in WAYS]
        for number in range(1, WARMUP + rounds + 1):
            for child in both if number % 2 else both[::-1]:
                child.round(number, [])
    seconds = [np.array(child.seconds[WARMUP:]) for child in both]
    pairs = seconds[0] / seconds[1]
    return {
        "wall": statistics.median(pairs.tolist()),
        "quartiles": np.percentile(pairs, [25, 75]).tolist(),
        "cpu": sum(both[0].cpu[WARMUP:]) / sum(both[1].cpu[WARMUP:]),
        "notices": {child.name: child.answer["notices"] for child in both},
        "seconds": {child.name: statistics.median(child.seconds[WARMUP:]) for child in both},
    }


def train(name: str, way: str, rounds: int, lanes: int | None) -> None:
    """A run that does a round whenever it is told to."""
    line, data = Line(), models.data(name)
    said: list[str] = []
    plan, clients = _plan(name, data, data.cohort if way == "one block" else None)

    def hold(event: Any) -> None:
        if type(event).__name__ == "Notice":
            said.append(event.text)
        if type(event).__name__ == "RoundCommitted":
            line.say(round=event.round, notices=said)
            if line.next() is None:
                os._exit(0)

    line.say(ready=True)
    if line.next() is not None:
        engine = Vectorized(lanes=lanes)
        insitu.run(plan, clients, rounds=WARMUP + rounds + 1, engine=engine, store=None, observers=[hold])


def parameters(name: str, workers: int, rounds: int) -> str:
    """A digest of the parameters after so many rounds by so many worker processes."""
    data = models.data(name)
    plan, clients = _plan(name, data, None)
    # The number of lanes is given: measured by the clock, it may come out otherwise the second time.
    engine = Processes(workers=workers, lanes=16)
    result = insitu.run(plan, clients, rounds=rounds, engine=engine, store=None, observers=[])
    digest = hashlib.sha256()
    for path, value in tree.leaves(tree.asnumpy(result.state)):
        digest.update(path.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _plan(name: str, data: Workload, block: int | None) -> tuple[insitu.Plan, Clients]:
    learner = TorchLearner(models.make(name))
    plan = insitu.Plan(FedAvg(lr=LR, batch_size=BATCH), learner, cohort=insitu.Uniform(data.cohort), block=block,
                       evaluate_every=0)  # fmt: skip
    return plan, Clients.from_arrays(data.x, data.y, data.parts())


if __name__ == "__main__":
    main()
