"""The yardstick does what insitu does: fed the same batches, it ends at the same parameters."""

from __future__ import annotations

import numpy as np
import torch

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.bench import loop, models, workload
from insitu.core.batches import batches
from insitu.data.clients import Clients
from insitu.learners.torch import TorchLearner

ROUNDS, SEED = 2, 3


def fed(data, cohort, number):
    for place in cohort:
        x, y = (torch.from_numpy(column) for column in data.client(place))
        made = batches(len(y), workload.BATCH, 1, None, seed=SEED, round=number, client=str(place))
        yield len(y), [(x[rows], y[rows]) for rows in made]


def test_the_loop_equals_the_inline_engine():
    data = workload.features(6, 3)
    learner, cohort = TorchLearner(models.make("lr")), insitu.Uniform(3)
    plan = insitu.Plan(FedAvg(lr=workload.LR, batch_size=workload.BATCH), learner, cohort=cohort, evaluate_every=0)
    clients = Clients.from_arrays(data.x, data.y, data.parts())
    result = insitu.run(plan, clients, rounds=ROUNDS, engine="inline", seed=SEED, store=None, observers=[])
    model = models.make("lr")
    # Clones, for what state_dict() gives are the model's own tensors, which training changes.
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(1, ROUNDS + 1):
        state, loss = loop.round(model, state, fed(data, cohort.sample(6, SEED, number), number))
    for name, value in state.items():
        np.testing.assert_allclose(result.params[name], value.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.history[-1]["train_loss"], loss, rtol=1e-5)


def test_batches_are_each_example_once():
    data = workload.features(2)
    [(n, made)] = loop.shuffled(data, [1])
    made = list(made)
    assert [len(y) for _, y in made] == [10] * (n // 10) + ([n % 10] if n % 10 else [])
    rows = torch.cat([x for x, _ in made]).numpy()
    assert sorted(map(tuple, rows)) == sorted(map(tuple, data.client(1)[0]))
