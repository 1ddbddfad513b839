"""The cases of the spmd contract: functions of an engine, so that the tests can ask another engine the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from contract_cases import BATCH, algorithm_classes, flat, learner, ragged, table, train

import insitu
from insitu.algorithms.data_parallel import DataParallel
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.scaffold import Scaffold
from insitu.core import tree, wire
from insitu.core.types import Data
from insitu.data.clients import Clients
from insitu.engines.spmd import Spmd
from insitu.learners.torch import TorchLearner
from insitu.privacy.clip import Clip

FLOAT64 = "float64"
ROUNDS = 3


def what_became(result: insitu.Result) -> dict[str, Any]:
    """A run as a tree: the model, the state, the history's counts, and the memories that lie here."""
    return {
        "flat": flat(result) if result.plan.learner is not None else np.zeros(0),
        "state": wire.digest(result.state),
        "leaves": [np.asarray(leaf) for _, leaf in sorted(tree.leaves(tree.asnumpy(result.state)))],
        "rows": [[row["clients"], row["failed"], row["bytes_up"]] for row in result.history],
        "losses": [row["train_loss"] for row in result.history if "train_loss" in row],
        "measured": [row["clients_loss"] for row in result.history if "clients_loss" in row],
        "wire": [[value for name, value in row.items() if name.startswith("wire_bytes_")] for row in result.history],
        "memories": dict(result.memories),
        "sequential": str(result.choices.get("sequential", "")),
    }


def method(cls: Any, dtype: torch.dtype, engine: Any, **more: Any) -> dict[str, Any]:
    """A method's example, on ragged clients with held-out parts."""
    if cls.learner_needed != "none":
        plan = insitu.Plan(cls.example(), learner=learner("perceptron", dtype), block=2, **more)
        return what_became(train(plan, ragged("perceptron", holdout=0.3), engine, ROUNDS))
    pool = table()
    parts = [np.arange(0, 9), np.arange(9, 13), np.arange(13, 24)]
    clients = Clients.from_arrays(pool.x, pool.y, parts)
    plan = insitu.Plan(cls.example())
    return what_became(train(plan, clients, engine, ROUNDS, evaluate=(pool.x, pool.y)))


def drawn(engine: Any, **more: Any) -> dict[str, Any]:
    """Clients with memories, drawn anew each round: memories move where shares do."""
    chosen = Scaffold(lr=0.1, steps=3, batch_size=BATCH)
    plan = insitu.Plan(chosen, learner=learner("perceptron"), cohort=insitu.Uniform(5), block=1, **more)
    return what_became(train(plan, ragged("perceptron"), engine, 6))


def fedavg(engine: Any, **more: Any) -> dict[str, Any]:
    plan = insitu.Plan(
        FedAvg(lr=0.1, epochs=2, batch_size=BATCH), learner=learner("perceptron", torch.float32), **{"block": 2, **more}
    )
    return what_became(train(plan, ragged("perceptron"), engine, ROUNDS))


class WithABadClient(Clients):
    """A population whose client at place 4 has labels that there are not."""

    def at(self, place: int) -> insitu.Client:
        client = super().at(place)
        return insitu.Client(client.id, Data(client.data.x, client.data.y + 10)) if place == 4 else client


def a_bad_client(engine: Any) -> dict[str, Any]:
    clients = WithABadClient(ragged("perceptron")._source)
    plan = insitu.Plan(FedAvg(lr=0.1, batch_size=BATCH), learner=learner("perceptron"), block=2)
    return what_became(train(plan, clients, engine, 2))


def as_many_clients_as_ranks(engine: Any) -> dict[str, Any]:
    plan = insitu.Plan(FedAvg(lr=0.1, steps=4, batch_size=BATCH), learner=learner("perceptron"), block=1)
    return what_became(train(plan, ragged("perceptron", (5, 9)), engine, ROUNDS))


def wide(features: int, engine: Any) -> dict[str, Any]:
    """A model of so many features: what travels of it, and nothing else, grows with them."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(18, features)), np.arange(18) % 2
    clients = Clients.from_arrays(x, y, np.split(np.arange(18), 6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Linear(features, 2)
    plan = insitu.Plan(FedAvg(lr=0.01, steps=1, batch_size=3), learner=TorchLearner(module), block=2)
    return what_became(train(plan, clients, engine, 2))


def steps(dtype: torch.dtype, engine: Any, hook: str | None = None, **more: Any) -> dict[str, Any]:
    """One averaged gradient a step, on a model that DistributedDataParallel takes."""
    chosen = DataParallel(**{"lr": 0.2, "batch_size": 10, "steps": 6, "optimizer": "momentum", "clip": 1.0, **more})
    wide = hook == "powersgd"  # what is small is not compressed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plan = insitu.Plan(chosen, learner=TorchLearner(torch.nn.Linear(36 if wide else 6, 3).to(dtype)))
    if isinstance(engine, Spmd):
        engine = dataclasses.replace(engine, hook=hook)
    result = train(plan, ragged("cnn" if wide else "logistic", holdout=0.3), engine, ROUNDS)
    return {**what_became(result), "gradient": str(result.choices.get("gradient", ""))}


STEPS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "steps-float64": partial(steps, torch.float64),
    "steps-float32": partial(steps, torch.float32),
    "steps-few": partial(steps, torch.float64, batch_size=3, clip=None, optimizer="adam"),
    "steps-fp16": partial(steps, torch.float32, hook="fp16"),
    "steps-powersgd": partial(steps, torch.float32, hook="powersgd"),
}
"""Cases of DistributedDataParallel, which tells a report a rank and not a client."""


CASES: dict[str, Callable[[Any], dict[str, Any]]] = {
    **{f"{cls.part_name()}-float64": partial(method, cls, torch.float64) for cls in algorithm_classes()},
    **{
        f"{cls.part_name()}-float32": partial(method, cls, torch.float32)
        for cls in algorithm_classes()
        if cls.learner_needed != "none"
    },
    "drawn": drawn,
    "bits": fedavg,
    "clipped": partial(fedavg, stages=(Clip(0.1),)),
    "over-selected": partial(
        fedavg, policy=insitu.Policy(quorum=0.5, over_select=1.0), cohort=insitu.Uniform(4), block=1
    ),
    "in-a-world": partial(fedavg, world=insitu.rounds.world.World(speed=100.0), policy=insitu.Policy(quorum=0.5)),
    "buffered": partial(fedavg, buffered=insitu.rounds.buffered.Buffered(3, concurrency=5)),
    "in-real-time": partial(
        method, Scaffold, torch.float64, buffered=insitu.rounds.buffered.Buffered(8, bound=0, clock="real")
    ),
    "a-bad-client": a_bad_client,
    "wide-1000": partial(wide, 1000),
    "wide-3000": partial(wide, 3000),
    "as-many-clients-as-ranks": as_many_clients_as_ranks,
}
