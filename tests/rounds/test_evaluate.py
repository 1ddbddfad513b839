"""Evaluation tasks of a block in one go, against the same tasks one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import insitu
from insitu import Plan
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.gossip import Gossip
from insitu.core.protocols import Setting
from insitu.core.types import Answer, Client, Data, Failure, Report, Task
from insitu.data import Clients
from insitu.engines.inline import attempt
from insitu.learners.numpy import LogisticLearner
from insitu.learners.torch import TorchLearner
from insitu.rounds.evaluate import evaluate_block, rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4))
Y = RNG.integers(0, 3, 120)
CLIENTS = Clients.from_arrays(X, Y, np.split(np.arange(120), [3, 20, 21, 60, 90]), holdout=0.3)


def net():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


class Counting(TorchLearner):
    """Counts how often a pass over many clients is made."""

    passes = 0

    def evaluate_many(self, variables, parts):
        self.passes += 1
        return super().evaluate_many(variables, parts)


def tasks_of(plan, n, message=None):
    start = plan.learner.init(0)
    message = message or {"shared": start.shared, "buffers": start.buffers}
    return [Task("r", 1, 1, "evaluate", CLIENTS.id_at(i), message, 0, i, i) for i in range(n)]


def compare(plan, clients, tasks, memories=None):
    setting = Setting(plan, clients, memories or {}, 1, 0)
    together, alone = evaluate_block(setting, tasks), [attempt(setting, task) for task in tasks]
    assert [type(item) for item in together] == [type(item) for item in alone]
    for a, b in zip(together, alone, strict=True):
        if isinstance(a, Failure):
            assert (a.client, a.index, a.error) == (b.client, b.index, b.error)
        else:
            assert a.task is b.task
            assert a.update.metrics == pytest.approx(b.update.metrics, rel=1e-12)
    return together


def test_the_sums_are_those_of_each_client_alone_in_one_pass():
    learner = Counting(net())
    plan = Plan(FedAvg(), learner)
    told = compare(plan, CLIENTS, tasks_of(plan, 6))
    assert learner.passes == 1
    # A single example is not held out.
    assert [item.update.metrics["examples"] for item in told] == [len(c.holdout or ()) for c in CLIENTS]
    assert any(c.holdout is None for c in CLIENTS)


class Broken:
    """Clients of whom some cannot be loaded, and some hold out what the model cannot take."""

    def __len__(self):
        return len(CLIENTS)

    def at(self, place):
        client = CLIENTS.at(place)
        if place == 1:
            raise ConnectionError("the site is down")
        if place == 3:
            return Client(client.id, client.data, Data(client.holdout.x[:, :2], client.holdout.y))
        if place == 4:
            return Client(client.id, client.data, Data(client.holdout.x, np.full_like(client.holdout.y, 8)))
        return client


def test_who_is_wrong_fails_alone_and_is_named():
    plan = Plan(FedAvg(), TorchLearner(net()))
    told = compare(plan, Broken(), tasks_of(plan, 6))
    assert [isinstance(item, Failure) for item in told] == [False, True, False, True, True, False]


class OwnMeasure(FedAvg):
    """A method that measures in its own way."""

    def measure(self, task, client, learner, memory):
        update = super().measure(task, client, learner, memory)
        return type(update)({}, {}, {**update.metrics, "own": 1.0})


@pytest.mark.parametrize(
    "plan",
    [
        Plan(OwnMeasure(), Counting(net())),
        Plan(FedAvg(), Counting(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)).double(), personal=("1.*",))),
    ],
    ids=["own measure", "personal variables"],
)
def test_what_is_not_one_model_is_measured_one_by_one(plan):
    rng = torch.Generator().manual_seed(3)
    personal = plan.learner.init(0).personal
    own = {
        client.id: {
            "algorithm": {
                "personal": {
                    "params": {
                        k: torch.randn(v.shape, generator=rng, dtype=v.dtype) for k, v in personal["params"].items()
                    },
                    "buffers": {},
                }
            }
        }
        for client in CLIENTS
        if personal
    }
    compare(plan, CLIENTS, tasks_of(plan, 6), own)
    assert plan.learner.passes == 0


def test_nodes_with_models_of_their_own_are_measured_one_by_one():
    learner = Counting(net())
    plan = Plan(Gossip(), learner)
    tasks = [task for i, task in enumerate(tasks_of(plan, 6)) if i != 0]
    start = learner.init(0)
    other = {"shared": {k: v + 1 for k, v in start.shared.items()}, "buffers": {}}
    tasks = tasks_of(plan, 1, other) + tasks
    told = compare(plan, CLIENTS, tasks)
    assert learner.passes == 0
    assert isinstance(told[0], Answer)


def test_a_learner_without_the_offer_is_asked_client_by_client():
    plan = Plan(FedAvg(), LogisticLearner().resolve(CLIENTS.schema()))
    compare(plan, CLIENTS, tasks_of(plan, 6))


def test_a_run_in_lanes_measures_what_an_inline_run_measures():
    learner = Counting(net())
    seen = {
        engine: insitu.run(Plan(FedAvg(), learner), CLIENTS, rounds=2, engine=engine, store=None, observers=[]).history
        for engine in ("inline", "vectorized")
    }
    assert learner.passes > 0
    for a, b in zip(seen["inline"], seen["vectorized"], strict=True):
        assert {k: v for k, v in a.items() if k.startswith("clients_")} == pytest.approx(
            {k: v for k, v in b.items() if k.startswith("clients_")}, rel=1e-9
        )


def test_rows_are_means_and_nan_where_nothing_was_told():
    reports = [
        Report("a", 0, {"examples": 4.0, "loss": 2.0}, 10),
        Report("b", 1, {"examples": 2.0, "loss": 3.0, "accuracy": 1.0}, 20),
        Report("c", 2, {"examples": 0.0}, 30),
        Report("d", 3, {}, 0),
    ]
    names, found = rows(reports)
    assert names == ["loss", "accuracy"]
    assert found[0][:4] == ["a", 4.0, 10, 0.5]
    assert found[1] == ["b", 2.0, 20, 1.5, 0.5]
    assert [row[:3] for row in found[2:]] == [["c", 0.0, 30], ["d", 0.0, 0]]
    assert all(math.isnan(x) for row in (found[0][4:], *(r[3:] for r in found[2:])) for x in row)
    assert rows([]) == ([], [])
