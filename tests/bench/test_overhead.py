"""Clients that do nothing change nothing, and the shares are shares."""

from __future__ import annotations

import numpy as np

import insitu
from insitu.bench import models, overhead, workload
from insitu.data.clients import Clients
from insitu.learners.torch import TorchLearner


def test_idle_clients_change_nothing():
    data = workload.features(4, 4)
    learner = TorchLearner(models.make("lr"))
    plan = insitu.Plan(overhead.Idle(lr=0.1), learner=learner, evaluate_every=0)
    clients = Clients.from_arrays(data.x, data.y, data.parts())
    result = insitu.run(plan, clients, rounds=2, engine="inline", store=None, observers=[])
    start = learner.init(0).shared
    assert all(np.array_equal(result.params[name], start[name].numpy()) for name in start)
    assert result.rounds == 2


def test_every_part_is_found_and_takes_some_of_the_whole():
    shares = overhead.shares(workload.features(8, 4), rounds=3)
    assert set(shares) == {label for label, *_ in overhead.OTHERS} | {"other threads"}
    # A function that was renamed would be found nowhere, and take nothing.
    assert all(0 < shares[label] < 1 for label, *_ in overhead.OTHERS)
