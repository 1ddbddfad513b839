"""A parameter server in real time: synchronous, stale-synchronous and asynchronous, with workers that are not alike.

    python benchmarks/parameter_server.py [--workers 3] [--answers 300] [--repeats 3] [--seconds 0.1] [--json FILE]

A perceptron (64-64-10) learns the digits by gradients of 32 examples (`FedSGD`), on `engine="processes"`; a fifth of
the data is held out for the test loss, and each worker has a share of the rest. A task rests ``--seconds`` beside its
gradient, so that it matters little how many cores there are, and four times as much where its worker is slow:

one    the last worker is slow, always
any    each task is slow with a chance of one in six, whoever has it

All do as many gradients; the learning rate of a synchronous round, which is the mean of all workers, is that of one
answer times the workers. Printed are gradients a second, the test loss after all of them, the mean age of an answer's
model, how far the fastest was ahead, and the share of the gradients that the last worker did: medians over repeats.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import insitu
from insitu.algorithms.fedsgd import FedSGD
from insitu.core import events
from insitu.data import load
from insitu.data.clients import Clients
from insitu.data.partition import iid
from insitu.engines.processes import Processes
from insitu.learners.torch import TorchLearner
from insitu.rounds.buffered import Buffered

LR, BATCH, TIMES, CHANCE = 0.1, 32, 4, 1 / 6
WAYS: dict[str, Buffered | None] = {
    "synchronous": None,
    "stale-synchronous, bound 2": Buffered(size=1, staleness=0.0, bound=2, clock="real"),
    "asynchronous": Buffered(size=1, staleness=0.0, clock="real"),
}


class Resting(Clients):
    """Clients that take their time to be had, whenever they are asked; ``slow`` is the place of those that take more,
    or None where any may."""

    seconds: float = 0.1
    slow: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rest": (self.seconds, self.slow)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.seconds, self.slow = state.pop("rest")
        super().__setstate__(state)

    def at(self, place: int) -> insitu.Client:
        slow = random.random() < CHANCE if self.slow is None else place == self.slow
        time.sleep(self.seconds * (TIMES if slow else 1))
        return super().at(place)


def measured(way: str, who: str, given: argparse.Namespace, seed: int) -> dict[str, float]:
    """One run: its gradients a second once all workers are up, and what came of them."""
    data, workers, buffered = load("digits"), given.workers, WAYS[way]
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    last = str(workers - 1)
    lr = LR * (1 if buffered else workers)
    rounds = given.answers // (1 if buffered else workers)
    plan = insitu.Plan(
        FedSGD(lr=lr, batch_size=BATCH, batches="onward"),
        TorchLearner(module),
        buffered=buffered,
        evaluate_every=rounds,
        block=1,
    )
    did, moments = {"all": 0, last: 0}, []

    def watch(event: events.Event) -> None:
        if isinstance(event, events.UpdatesArrived):
            moments.append(time.monotonic())
            did["all"] += len(event.rows)
            did[last] += sum(row[0] == last for row in event.rows)

    x, y = data.x.reshape(len(data.x), -1), data.y
    test, train = np.split(np.random.default_rng(0).permutation(len(y)), [len(y) // 5])  # the same of every run
    clients = Resting(Clients.from_arrays(x[train], y[train], iid(y[train], workers))._source)
    clients.seconds, clients.slow = given.seconds, workers - 1 if who == "one" else None
    result = insitu.run(
        plan, clients, rounds=rounds, engine=Processes(workers=workers), seed=seed, evaluate=(x[test], y[test]),
        store=None, observers=[watch],
    )  # fmt: skip
    tenth = len(moments) // 10  # the first while workers warm up
    a_round = (moments[-1] - moments[tenth]) / (len(moments) - 1 - tenth)
    rows = list(result.history)
    return {
        "gradients/s": did["all"] / len(moments) / a_round,
        "loss": rows[-1]["loss"],
        "age": statistics.mean(row.get("staleness", 0.0) for row in rows),
        "lead": max(row.get("lead", 0) for row in rows),
        "last": did[last] / did["all"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--answers", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    print("| who is slow | | gradients/s | test loss | age | lead | the last worker's share |")
    print("|---|---|---|---|---|---|---|")
    for who in ("one", "any"):
        for way in WAYS:
            runs = [measured(way, who, given, seed) for seed in range(given.repeats)]
            middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            found[f"{who}, {way}"] = {"median": middle, "runs": runs}
            lead = f"{middle['lead']:.0f}" if "stale" in way else ""
            print(
                f"| {who} | {way} | {middle['gradients/s']:.1f} | {middle['loss']:.3f} | {middle['age']:.1f} | {lead} |"
                f" {middle['last']:.0%} |",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
