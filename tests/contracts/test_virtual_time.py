"""Simulated time is the same on every engine found on disk, and so is the answer."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from contract_cases import engines, far, flat, in_process, learner, ragged, train, worker_engines

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.scaffold import Scaffold
from insitu.engines.inline import Inline
from insitu.rounds.buffered import Buffered
from insitu.rounds.world import LogNormal, Spells, World

SIZES = (3, 1, 9, 5, 6, 2, 11, 4, 7, 8, 3, 5)
WORLD = World(
    speed=LogNormal(2.0, 0.7), up=LogNormal(500.0), down=2000.0, dropout=0.1, jitter=0.2,
    available=Spells(timedelta(minutes=3), timedelta(minutes=1)),
)  # fmt: skip
ROUNDS = {
    "over-selection": {"cohort": insitu.Uniform(4), "policy": insitu.Policy(over_select=0.5)},
    "deadline": {
        "cohort": insitu.Uniform(6),
        "policy": insitu.Policy(deadline=timedelta(seconds=9), quorum=0.2, retries=99),
    },
    "buffered": {"buffered": Buffered(size=3, concurrency=6)},
}
TOLD = (
    "clock",
    "simulated_seconds",
    "available",
    "asked",
    "late",
    "dropped",
    "simulated_bytes_up",
    "clients",
    "failed",
)


class Unreachable:
    """Clients some of which cannot be loaded, which nobody knows before they are."""

    def __init__(self, clients):
        self.clients = clients

    def __len__(self):
        return len(self.clients)

    def at(self, place):
        if place and place % 3 == 0:
            raise OSError("gone")
        return self.clients.at(place)

    def __getattr__(self, name):
        return getattr(self.__dict__["clients"], name)


def plan(rounds, algorithm):
    return insitu.Plan(algorithm, learner=learner("perceptron"), world=WORLD, block=2, **ROUNDS[rounds])


def told(result):
    return [[row.get(name) for name in TOLD] for row in result.history]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("engine", [name for name in in_process() if name not in ("inline", "debug")])
def test_it_says_what_inline_says(engine, rounds):
    """The seconds to the last bit; the answer as close as engines are."""
    for algorithm in (FedAvg(lr=0.1, epochs=2, batch_size=4), Scaffold(lr=0.1, steps=3, batch_size=4)):
        chosen, clients = plan(rounds, algorithm), Unreachable(ragged("perceptron", SIZES))
        expected = train(chosen, clients, Inline(), 6)
        result = train(chosen, clients, engines()[engine], 6)
        assert told(result) == told(expected)
        assert far(flat(expected), flat(result)) <= 1e-10
    assert len({row["clock"] for row in result.history}) == 6
    assert sum(row["failed"] for row in result.history) > 1


def test_any_number_of_workers_has_the_same_bits():
    chosen, clients = plan("over-selection", FedAvg(lr=0.1, batch_size=4)), ragged("perceptron", SIZES)
    expected = train(chosen, clients, Inline(), 3)
    one, two = (train(chosen, clients, engines()[name], 3) for name in worker_engines()[:2])
    assert told(one) == told(two) == told(expected)
    np.testing.assert_array_equal(flat(one), flat(two))
    assert far(flat(expected), flat(two)) <= 1e-10
