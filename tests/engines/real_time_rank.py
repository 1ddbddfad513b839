"""One rank of the tests of rounds in real time: ``main(OUT)`` under RANK and WORLD_SIZE.

The ranks are started once, since each of them imports torch, and run every case in order; rank 2 takes its time.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.scaffold import Scaffold
from insitu.core import events, wire
from insitu.data.clients import Clients
from insitu.engines.spmd import Spmd
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.buffered import Buffered

X = np.random.default_rng(0).normal(size=(120, 3))
Y = (X[:, 0] > 0).astype(int)
ROUNDS = 30


HERE: list[str] = []
"""The clients that this process has looked at in the present case: one before the run starts, then those it had."""


class Slow(LogisticLearner):
    """A learner that takes its time on rank 2."""

    def check(self, client: insitu.Client) -> None:
        HERE.append(client.id)
        if os.environ.get("RANK") == "2":
            time.sleep(0.3)
        super().check(client)


def clients(n: int) -> Clients:
    return Clients.from_arrays(X, Y, np.array_split(np.arange(120), n), holdout=0.2)


def a_slow_rank(**more: Any) -> dict[str, Any]:
    """Two clients for two ranks that work: each stays with its own."""
    return ran(insitu.Plan(FedAvg(lr=0.1), Slow(), buffered=Buffered(size=1, clock="real"), evaluate_every=10), **more)


def a_bound(**more: Any) -> dict[str, Any]:
    chosen = Buffered(size=1, bound=2, clock="real")
    return ran(insitu.Plan(FedAvg(lr=0.1), Slow(), buffered=chosen, evaluate_every=0), **more)


def everyone(**more: Any) -> dict[str, Any]:
    """The synchronous run, of five clients who remember."""
    buffered = more.pop("buffered", Buffered(size=5, bound=0, clock="real"))
    chosen = Scaffold(lr=0.1, epochs=1, batch_size=8)
    return ran(insitu.Plan(chosen, Slow(), buffered=buffered), **{"n": 5, "rounds": 4, **more})


def stopped(**more: Any) -> dict[str, Any]:
    """Rank 1 wants it to stop, which only rank 0 can do."""
    wanted = (lambda: True) if os.environ.get("RANK") == "1" else None
    chosen = Buffered(size=1, clock="real")
    return ran(insitu.Plan(FedAvg(lr=0.1), Slow(), buffered=chosen, evaluate_every=0), stop=wanted, **more)


def again(**more: Any) -> dict[str, Any]:
    """An ordinary run after all these: the ranks are together again."""
    return ran(insitu.Plan(FedAvg(lr=0.1), Slow()), **{"rounds": 3, **more})


CASES = {case.__name__: case for case in (a_slow_rank, a_bound, everyone, stopped, again)}


def ran(plan: insitu.Plan, n: int = 2, rounds: int = ROUNDS, **more: Any) -> dict[str, Any]:
    told: list[events.Event] = []
    HERE.clear()
    result = insitu.run(plan, clients(n), rounds=rounds, observers=[told.append], **more)
    return {
        "id": result.id,
        "status": result.status,
        "here": sorted(set(HERE[1:])),
        "state": wire.digest(result.state),
        "memories": wire.digest(dict(result.memories)),
        "rounds": len(result.history),
        "lead": [row.get("lead", 0) for row in result.history],
        "wire": [row.get("wire_bytes", 0) for row in result.history],
        "loss": [row["clients_loss"] for row in result.history if "clients_loss" in row],
        "rows": [row[:3] for event in told if isinstance(event, events.Arrivals) for row in event.rows],
        "said": [event.text for event in told if isinstance(event, events.Notice)],
    }


def main(out: Path) -> None:
    engine = Spmd(timeout=60.0)
    rank = engine.ranks().rank
    for name, case in CASES.items():
        told: dict[str, Any]
        try:
            told = case(engine=engine, store=None if rank else out / "runs.db")
        except Exception:
            told = {"error": traceback.format_exc()}
        (out / f"{name}.{rank}").write_bytes(wire.encode(told))
