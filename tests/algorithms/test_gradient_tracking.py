"""Gradient tracking: the recursion by hand, the exact optimum where gossip keeps a bias, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest

import insitu
from insitu.algorithms.gossip import Gossip
from insitu.algorithms.gradient_tracking import GradientTracking
from insitu.core import wire
from insitu.core.batches import onward
from insitu.core.errors import PlanError
from insitu.core.schedules import Exponential
from insitu.data.clients import Clients
from insitu.learners.numpy import LinearLearner
from insitu.reduce.neighbours import mixing, pairs

N = 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)) * np.repeat(RNG.uniform(0.5, 1.5, N), 10)[:, None]
Y = X @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=60) + 2.0 * np.repeat(np.arange(N), 10)
CLIENTS = Clients.from_arrays(X, Y, np.array_split(np.arange(60), N))
A = [np.c_[X[10 * i : 10 * i + 10], np.ones(10)] for i in range(N)]
B = [Y[10 * i : 10 * i + 10] for i in range(N)]


def gradient(i, w, rows=slice(None)):
    a, b = A[i][rows], B[i][rows]
    return 2 * a.T @ (a @ w - b) / len(b)


def matrix(topology, round=1):
    w = np.zeros((N, N))
    for i, row in enumerate(mixing(topology, N, 0, round)):
        w[i, list(row)] = list(row.values())
    return w


def run(algorithm, rounds=6, clients=CLIENTS, **more):
    plan = insitu.Plan(algorithm, learner=LinearLearner(3))
    return insitu.run(plan, clients, **{"rounds": rounds, "engine": "inline", "store": None, "observers": [], **more})


def models(result, part="shared"):
    nodes = result.state["nodes"]
    return np.stack([np.r_[nodes[str(i)][part]["weight"][0], nodes[str(i)][part]["bias"]] for i in range(N)])


OPTIMUM = np.linalg.lstsq(np.concatenate(A), np.concatenate(B), rcond=None)[0]  # equal shares: the mean loss's


@pytest.mark.parametrize("topology", ["ring", "grid", "pairs"])
def test_a_run_is_the_recursion_by_hand(topology):
    x, y, last = np.zeros((N, 4)), np.zeros((N, 4)), np.zeros((N, 4))
    for round in range(1, 7):
        now = np.stack([gradient(i, x[i]) for i in range(N)])
        y = y + now - last
        w = matrix(topology, round)
        x, y, last = w @ (x - 0.03 * y), w @ y, now
    result = run(GradientTracking(lr=0.03, topology=topology))
    np.testing.assert_allclose(models(result), x, rtol=1e-10)
    np.testing.assert_allclose(models(result, "tracker"), y, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.params["weight"][0], x.mean(axis=0)[:3], rtol=1e-10)
    assert result.history[-1]["disagreement"] == pytest.approx(np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()))


@pytest.mark.parametrize("topology", ["ring", "exponential"])
def test_it_finds_the_optimum_where_gossip_keeps_a_bias(topology):
    tracked = models(run(GradientTracking(lr=0.03, topology=topology), 1500))
    np.testing.assert_allclose(tracked, np.tile(OPTIMUM, (N, 1)), rtol=1e-9, atol=1e-9)
    gossiped = [
        np.abs(models(run(Gossip(lr=0.03, batch_size=None, topology=topology), rounds)) - OPTIMUM).max()
        for rounds in (700, 1500)
    ]
    assert gossiped[1] > 0.02  # and more rounds do not help:
    assert gossiped[1] == pytest.approx(gossiped[0], rel=1e-6)


def test_it_comes_nearer_by_the_same_factor_again_and_again():
    def off(rounds):
        return np.abs(models(run(GradientTracking(lr=0.03), rounds)) - OPTIMUM).max()

    a, b, c = off(300), off(400), off(500)
    assert b / a == pytest.approx(c / b, rel=0.05)
    assert b < 0.5 * a


class Flaky:
    def __init__(self):
        self.asked = 0

    def __len__(self):
        return N

    def __getattr__(self, name):
        return getattr(CLIENTS, name)

    def at(self, place):
        self.asked += 1
        if place == 2 and 6 < self.asked < 20:
            raise ConnectionError("gone")
        return CLIENTS.at(place)


def test_the_sum_of_trackers_is_the_sum_of_gradients_even_if_a_node_fails():
    """The invariant on which everything rests; each node's last gradient is its memory."""
    result = run(GradientTracking(lr=0.03), 7, clients=Flaky())
    assert sum(row["failed"] for row in result.history) >= 2
    held = sum(
        np.r_[memory["algorithm"]["method"]["weight"][0], memory["algorithm"]["method"]["bias"]]
        for memory in result.memories.values()
    )
    np.testing.assert_allclose(models(result, "tracker").sum(axis=0), held, rtol=1e-9, atol=1e-11)
    late = models(run(GradientTracking(lr=0.03), 1500, clients=Flaky()))
    np.testing.assert_allclose(late, np.tile(OPTIMUM, (N, 1)), rtol=1e-9, atol=1e-9)


def test_drawn_batches_go_on_through_the_epochs():
    x, y, last = np.zeros((N, 4)), np.zeros((N, 4)), np.zeros((N, 4))
    for round in range(4):
        now = np.stack([gradient(i, x[i], onward(10, 4, round, 1, seed=0, client=str(i))[0]) for i in range(N)])
        y = y + now - last
        x, y, last = matrix("ring") @ (x - 0.03 * y), matrix("ring") @ y, now
    result = run(GradientTracking(lr=0.03, batch_size=4, batches="onward"), 4)
    np.testing.assert_allclose(models(result), x, rtol=1e-10)


def test_a_resumed_run_has_the_same_bits(tmp_path):
    algorithm = GradientTracking(lr=Exponential(0.03, decay=0.9), topology="pairs")
    whole = run(algorithm, 6)
    half = run(algorithm, 3, store=tmp_path / "a.db")
    rest = run(algorithm, 6, store=tmp_path / "a.db", resume=half.id)
    assert wire.encode(rest.state) == wire.encode(whole.state)
    assert pairs(N, 0, 1) != pairs(N, 0, 2)


@pytest.mark.parametrize("option", [{"topology": "star"}, {"lr": 0}, {"batch_size": 0}, {"batches": "now"}])
def test_bad_arguments(option):
    ((name, value),) = option.items()
    with pytest.raises(PlanError, match=f"{name}={value!r}"):
        GradientTracking(**option)
