"""What `insitu.estimate` says beforehand, over what the run then takes: each in a process of its own, in turn.

Wall and CPU are those of `estimate` and `run` themselves, in processes that have their data and have trained nothing
yet; memory is sampled from outside, over the whole life of the process.

    python benchmarks/estimate.py [--models lr,mlp,cnn,lstm] [--rounds 60] [--engine vectorized] [--evaluate-every 10]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.bench import models
from insitu.bench.processes import PeakMemory
from insitu.bench.workload import BATCH, LR
from insitu.data.clients import Clients
from insitu.learners.torch import TorchLearner

ROUNDS = {"lr": 100, "mlp": 40, "cnn": 4, "lstm": 6}
FIGURES = ("seconds", "cpu_seconds", "peak_memory", "bytes_up", "bytes_down")
TESTED = 500
"""Examples of the central test set."""


def main() -> None:
    """Prints a line of ratios a model; as a child, does one half of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(ROUNDS))
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--engine", default=None)
    parser.add_argument("--evaluate-every", type=int, default=0)
    parser.add_argument("--child", choices=("estimate", "run"), default=None)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.models, given.rounds, given.engine, given.evaluate_every)
        return
    print(f"{'model':<6}{'rounds':>7}" + "".join(f"{name:>13}" for name in FIGURES) + "   predicted / actual")
    for name in given.models.split(","):
        rounds = given.rounds or ROUNDS[name]
        options = ["--models", name, "--rounds", str(rounds), "--evaluate-every", str(given.evaluate_every)]
        options += ["--engine", given.engine] if given.engine else []
        before, after = (half(what, options) for what in ("estimate", "run"))
        ratios = "".join(f"{before[figure] / after[figure]:>13.2f}" for figure in FIGURES)
        said = f"{before['seconds']:.1f} / {after['seconds']:.1f} s, {before['peak_memory'] / 1e6:.0f} / "
        said += f"{after['peak_memory'] / 1e6:.0f} MB"
        print(f"{name:<6}{rounds:>7}{ratios}   {said}", flush=True)


def half(what: str, options: list[str]) -> dict[str, float]:
    """The figures of one half, out of a process of its own."""
    command = [sys.executable, __file__, "--child", what, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with PeakMemory(process.pid, every=0.1) as memory:
        out, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with code {process.returncode}")
    return {"peak_memory": memory.peak, **json.loads(out)}


def child(what: str, name: str, rounds: int, engine: str | None, every: int) -> None:
    """Estimates or runs, and says what it took; ``peak_memory`` of a run is seen from outside."""
    data = models.data(name)
    plan = insitu.Plan(
        FedAvg(lr=LR, batch_size=BATCH),
        learner=TorchLearner(models.make(name)),
        cohort=insitu.Uniform(data.cohort),
        evaluate_every=every,
    )
    clients = Clients.from_arrays(data.x, data.y, data.parts())
    given = {"rounds": rounds, "engine": engine, "evaluate": (data.x[:TESTED], data.y[:TESTED]) if every else None}
    if what == "estimate":
        print(json.dumps(insitu.estimate(plan, clients, **given).plain()))
        return
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, insitu.Profile() as profile:
        result = insitu.run(plan, clients, store=Path(folder) / "insitu.db", observers=[], **given)
    told = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    told["cpu_seconds"] += profile.workers_cpu_seconds
    told |= {key: sum(row[key] for row in result.history) for key in ("bytes_up", "bytes_down")}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
