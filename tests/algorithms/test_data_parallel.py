"""Synchronous data parallel: against a loop by hand over the pooled examples, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import insitu
from insitu.algorithms.data_parallel import DataParallel
from insitu.core.batches import cut, pooled
from insitu.core.errors import PlanError
from insitu.core.optim import Momentum
from insitu.core.types import Data
from insitu.data.clients import Clients
from insitu.learners.torch import TorchLearner
from insitu.privacy.clip import Clip
from insitu.rounds.server import spread

sys.path.insert(0, str(Path(__file__).parent.parent / "contracts"))


def module():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def population(sizes=(11, 3, 20, 6)):
    rng = np.random.default_rng(1)
    n = sum(sizes)
    x, y = rng.normal(size=(n, 5)), rng.integers(0, 3, n)
    return x, y, Clients.from_arrays(x, y, np.split(np.arange(n), np.cumsum(sizes)[:-1]))


def train(algorithm, clients, rounds, engine, seed=4):
    plan = insitu.Plan(algorithm, learner=TorchLearner(module()))
    return insitu.run(plan, clients, rounds=rounds, engine=engine, seed=seed, store=None, observers=[])


@pytest.mark.parametrize("engine", ["inline", "vectorized", "spmd"])
def test_it_is_one_process_on_the_pooled_examples(engine):
    """Against torch's own optimiser and clipping on the same batches, whoever's clients their examples are."""
    x, y, clients = population()
    algorithm = DataParallel(lr=0.2, batch_size=12, steps=5, optimizer=Momentum(0.9), clip=0.5)
    result = train(algorithm, clients, 4, engine)
    model = module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    seen = []
    for step in range(20):
        batch = pooled(40, 12, step, 4)
        seen.append(batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x[batch])), torch.from_numpy(y[batch])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(result.params[name], p.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert [len(batch) for batch in seen[:4]] == [12, 12, 12, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen[:4])), np.arange(40))


def test_how_clients_are_cut_changes_nothing():
    """The plan of batches knows the pooled examples and no client."""
    x, y, many = population()
    one = Clients.from_arrays(x, y)
    a, b = (train(DataParallel(lr=0.2, batch_size=12, steps=5), c, 3, "inline") for c in (many, one))
    for name in a.params:
        np.testing.assert_allclose(a.params[name], b.params[name], rtol=1e-12, atol=1e-13)


def test_dropout_is_drawn_anew_each_step():
    """Two steps of a round that see the same batch must not drop the same units."""
    x, y, clients = population()

    def losses(steps, rounds):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)).double()
        plan = insitu.Plan(DataParallel(lr=1e-9, batch_size=None, steps=steps), learner=TorchLearner(model))
        run = insitu.run(plan, clients, rounds=rounds, engine="inline", seed=4, store=None, observers=[])
        return [row["train_loss"] for row in run.history]

    one, two = losses(1, 1), losses(2, 1)
    assert abs(2 * two[0] - 2 * one[0]) > 1e-6


@given(
    n=st.integers(1, 60),
    size=st.integers(1, 70),
    ranks=st.integers(1, 7),
    other=st.integers(1, 7),
    turn=st.integers(0, 9),
)
def test_every_example_is_seen_once_an_epoch_whatever_becomes_of_the_ranks(n, size, ranks, other, turn):
    """A run goes on with another number of ranks in the middle of an epoch."""
    steps = -(-n // size)
    seen = []
    for step in range(steps, 2 * steps):  # the second epoch
        world = ranks if step < steps + turn else other
        batch = pooled(n, size, step, 3)
        parts = [cut(batch, rank, world) for rank in range(world)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        seen += parts
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(n))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_examples_find_their_owners(sizes, data):
    n = sum(sizes)
    examples = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
    owners = [(place, at) for place, size in enumerate(sizes) for at in range(size)]
    expected: dict[int, list[int]] = {}
    for example in examples:
        place, at = owners[example]
        expected.setdefault(place, []).append(at)
    assert {place: part.tolist() for place, part in spread(examples, sizes).items()} == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cohort": insitu.Uniform(2)}, "takes every step with all clients"),
        ({"policy": insitu.Policy(over_select=0.5)}, "takes every step with all clients"),
        ({"stages": (Clip(1.0),)}, "a round of DataParallel is 10 steps"),
    ],
)
def test_what_does_not_go_with_steps_is_refused(more, message):
    with pytest.raises(PlanError, match=message):
        insitu.Plan(DataParallel(), learner=TorchLearner(module()), **more)


def test_a_client_that_cannot_be_learnt_from_fails_and_the_step_goes_on():
    _, _, clients = population()

    class Bad(Clients):
        def at(self, place):
            client = super().at(place)
            return insitu.Client(client.id, Data(client.data.x, client.data.y + 9)) if place == 1 else client

    result = train(DataParallel(lr=0.1, batch_size=None, steps=2), Bad(clients._source), 2, "inline")
    assert [row["failed"] for row in result.history] == [1, 1]
