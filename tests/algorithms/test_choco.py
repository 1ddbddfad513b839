"""CHOCO-SGD against a naive loop; what happens to nodes that are not there; what is told and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import insitu
from insitu.algorithms.choco import Choco
from insitu.algorithms.gossip import Gossip
from insitu.compress.topk import TopK, largest
from insitu.core.types import Context, Update
from insitu.data.clients import Clients
from insitu.learners.numpy import LinearLearner
from insitu.reduce.copies import Copies
from insitu.reduce.neighbours import TOPOLOGIES, Neighbours, mixing

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=60) + np.repeat(np.arange(6), 10)
CLIENTS = Clients.from_arrays(X, Y, np.array_split(np.arange(60), 6))
TOP = TopK(0.4, smallest=0, feedback=False)


def run(algorithm, rounds=5, clients=CLIENTS, stages=(), **more):
    plan = insitu.Plan(algorithm, learner=LinearLearner(3, dtype="float32"), stages=stages, **more)
    return insitu.run(plan, clients, rounds=rounds, engine="inline", store=None, observers=[])


def model(variables) -> np.ndarray:
    return np.r_[variables["weight"][0], variables["bias"]]


def trained(i, w):
    x, y = np.c_[X[10 * i : 10 * i + 10], np.ones(10)].astype(np.float32), Y[10 * i : 10 * i + 10].astype(np.float32)
    return w - np.float32(0.05) * 2 * x.T @ (x @ w - y) / 10


def test_a_run_is_the_papers_algorithm_by_a_naive_loop():
    """Algorithm 2 with matrices: x⁺ = x − η∇; q = C(x⁺ − x̂); x̂ += q; x = x⁺ + γ (W − I) x̂."""
    w = np.array([[row.get(j, 0.0) for j in range(6)] for row in mixing("ring", 6)])
    x, copies = np.zeros((6, 4)), np.zeros((6, 4))
    for _ in range(7):
        half = np.stack([trained(i, x[i]) for i in range(6)])
        told = half - copies
        for i in range(6):  # of the three weights the largest; the bias travels as it is, being no larger so
            small = np.setdiff1d(np.arange(3), largest(told[i, :3], 1))
            told[i, small] = 0
        copies = copies + told
        x = half + 0.3 * (w @ copies - copies)
    result = run(Choco(gamma=0.3, lr=0.05, batch_size=None), 7, stages=(TOP,))
    for i in range(6):
        node = result.state["nodes"][str(i)]
        np.testing.assert_allclose(model(node["shared"]), copies[i], atol=1e-5)
        np.testing.assert_allclose(model(node["pull"]), x[i] - half[i], atol=1e-5)
        np.testing.assert_allclose(model(result.memories[str(i)]["algorithm"]["method"]), half[i], atol=1e-5)
    known = copies + 0.3 * (w @ copies - copies)
    np.testing.assert_allclose(model(result.params), known.mean(axis=0), atol=1e-5)
    distance = np.sqrt(((known - known.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert result.history[-1]["disagreement"] == pytest.approx(distance, rel=1e-4)


def test_what_is_told_is_packed_and_the_node_keeps_itself():
    result = run(Choco(gamma=0.3, lr=0.05, batch_size=None), 2, stages=(TOP,))
    assert [row["bytes_up"] for row in result.history] == [6 * (4 + 1 + 4)] * 2
    assert set(result.memories["0"]) == {"algorithm"}


class Flaky:
    """The nodes of ``down`` fail whenever they are asked, until ``calls`` have failed."""

    def __init__(self, down, calls):
        self.down, self.calls = down, calls

    def __len__(self):
        return len(CLIENTS)

    def __getattr__(self, name):
        return getattr(CLIENTS, name)

    def at(self, place):
        if place == self.down and self.calls:
            self.calls -= 1
            raise ConnectionError("gone")
        return CLIENTS.at(place)


@pytest.mark.parametrize("more", [{"cohort": insitu.Uniform(4)}, {"clients": Flaky(2, 2)}])
def test_with_nodes_missing_it_is_still_gossip_without_compression(more):
    """A node that was away is moved by its neighbours when it is back: memory and pull wait for it."""
    if "clients" in more:
        found = run(Choco(lr=0.05, batch_size=None), 6, clients=Flaky(2, 2))
        expected = run(Gossip(lr=0.05, batch_size=None), 6, clients=Flaky(2, 2))
        assert [row["failed"] for row in found.history] == [1, 1, 0, 0, 0, 0]
    else:
        found, expected = (run(cls(lr=0.05, batch_size=None), 6, **more) for cls in (Choco, Gossip))
    assert found.state["nodes"].keys() == expected.state["nodes"].keys()
    for node, own in found.state["nodes"].items():
        moved = model(own["shared"]) + model(own["pull"])
        np.testing.assert_allclose(moved, model(expected.state["nodes"][node]["shared"]), atol=1e-5)


# ------------------------------------------------------------ the reduce


@given(st.sampled_from(sorted(TOPOLOGIES)), st.integers(1, 12), st.sets(st.integers(0, 11), max_size=4))
def test_words_weighted_by_who_hears_them_are_what_neighbours_mix(topology, n, failed):
    rng = np.random.default_rng(n)
    names = [f"n{i}" for i in range(n)]
    context, mixed, words = Context(1, n, names), Neighbours(topology), Copies(topology)
    a, b = mixed.zero(), words.zero()
    for i in set(range(n)) - failed:
        update = Update({"shared": {"w": rng.normal(size=3)}, "buffers": {"m": rng.normal(size=2)}}, {"shared": 1.0})
        a, b = mixed.add(a, update, names[i]), words.add(b, update, names[i])
    expected, found = mixed.finish(a, context).value, words.finish(b, context).value
    assert found.keys() == expected.keys()
    for node, told in found.items():
        heard = sum(weight * found[other]["shared"]["w"] for other, weight in told["heard"].items())
        np.testing.assert_allclose(heard, expected[node]["shared"]["w"], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(told["buffers"]["m"], expected[node]["buffers"]["m"])
