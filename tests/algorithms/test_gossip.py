"""Gossip: the graphs, the mixing matrices, and what mixing keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import insitu
from insitu.algorithms.gossip import Gossip
from insitu.core import tree
from insitu.core.errors import PlanError
from insitu.core.types import Context, Update
from insitu.data.clients import Clients
from insitu.learners.numpy import LinearLearner
from insitu.reduce.neighbours import TOPOLOGIES, Neighbours, complete, exponential, grid, mixing, ring

topologies = st.sampled_from(sorted(TOPOLOGIES))


def matrix(topology: str, n: int) -> np.ndarray:
    w = np.zeros((n, n))
    for i, row in enumerate(mixing(topology, n)):
        for j, weight in row.items():
            w[i, j] = weight
    return w


@given(topologies, st.integers(1, 40))
def test_mixing_matrices_are_symmetric_and_doubly_stochastic(topology, n):
    w = matrix(topology, n)
    np.testing.assert_allclose(w, w.T, atol=1e-15)
    np.testing.assert_allclose(w.sum(axis=0), 1, atol=1e-13)
    np.testing.assert_allclose(w.sum(axis=1), 1, atol=1e-13)
    assert (w >= -1e-13).all()


@given(topologies, st.integers(2, 30))
def test_every_graph_is_connected_so_that_nodes_agree_in_the_end(topology, n):
    eigenvalues = np.sort(np.abs(np.linalg.eigvalsh(matrix(topology, n))))
    assert eigenvalues[-1] == pytest.approx(1)
    assert eigenvalues[-2] < 1 - 1e-6


@given(topologies, st.integers(1, 30))
def test_edges_are_symmetric_and_lead_elsewhere(topology, n):
    edges = TOPOLOGIES[topology](n)
    for i, neighbours in enumerate(edges):
        assert i not in neighbours
        assert all(i in edges[j] for j in neighbours)


def test_edges_are_right():
    assert ring(5) == [{4, 1}, {0, 2}, {1, 3}, {2, 4}, {3, 0}]
    assert ring(1) == [set()]
    assert ring(2) == [{1}, {0}]
    # 0 1 2
    # 3 4 5
    # 6 7
    assert grid(8) == [{1, 3}, {0, 2, 4}, {1, 5}, {0, 4, 6}, {1, 3, 5, 7}, {2, 4}, {3, 7}, {4, 6}]
    assert exponential(9)[0] == {1, 2, 4, 8, 7, 5}
    assert exponential(4)[0] == {1, 2, 3}
    assert complete(3) == [{1, 2}, {0, 2}, {0, 1}]


def test_metropolis_hastings_by_hand():
    """A grid of five: degrees 2 (0), 3 (1), 1 (2), 2 (3), 2 (4)."""
    # 0 1 2
    # 3 4
    w = matrix("grid", 5)
    expected = np.array(
        [
            [1 - 1 / 4 - 1 / 3, 1 / 4, 0, 1 / 3, 0],
            [1 / 4, 1 - 3 / 4, 1 / 4, 0, 1 / 4],
            [0, 1 / 4, 3 / 4, 0, 0],
            [1 / 3, 0, 0, 1 / 3, 1 / 3],
            [0, 1 / 4, 0, 1 / 3, 1 - 1 / 4 - 1 / 3],
        ]
    )
    np.testing.assert_allclose(w, expected, atol=1e-15)


def mixed(topology, values, failed=()):
    names = [f"n{i}" for i in range(len(values))]
    reduce, accumulator = Neighbours(topology), Neighbours(topology).zero()
    for i, x in enumerate(values):
        if i not in failed:
            accumulator = reduce.add(accumulator, Update({"shared": {"w": np.asarray(x)}}, {"shared": 1.0}), names[i])
    total = reduce.finish(accumulator, Context(1, len(values), names))
    return {names.index(node): value["shared"]["w"] for node, value in total.value.items()}


@given(topologies, st.integers(1, 15), st.sets(st.integers(0, 14), max_size=5))
def test_mixing_keeps_the_mean_even_if_some_nodes_fail(topology, n, failed):
    values = np.random.default_rng(n).normal(size=(n, 3))
    found = mixed(topology, values, failed)
    present = [i for i in range(n) if i not in failed]
    assert sorted(found) == present
    if present:
        np.testing.assert_allclose(
            np.mean([found[i] for i in present], axis=0), values[present].mean(axis=0), rtol=1e-12, atol=1e-13
        )


def test_a_failed_neighbours_share_is_kept():
    """On a ring of four, each gives a third; where node 1 fails, 0 and 2 keep its third themselves."""
    found = mixed("ring", [[3.0], [30.0], [6.0], [9.0]], failed=(1,))
    np.testing.assert_allclose(found[0], [(2 * 3 + 9) / 3])
    np.testing.assert_allclose(found[2], [(2 * 6 + 9) / 3])
    np.testing.assert_allclose(found[3], [(3 + 6 + 9) / 3])


@given(topologies, st.integers(2, 12))
def test_it_is_the_matrix_times_the_models(topology, n):
    values = np.random.default_rng(n).normal(size=(n, 4))
    found = mixed(topology, values)
    np.testing.assert_allclose(np.stack([found[i] for i in range(n)]), matrix(topology, n) @ values, rtol=1e-12)


# ------------------------------------------------------------ runs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=60) + np.repeat(np.arange(6), 10)
CLIENTS = Clients.from_arrays(X, Y, np.array_split(np.arange(60), 6))


def run(algorithm, rounds=5, clients=CLIENTS, **more):
    plan = insitu.Plan(algorithm, learner=LinearLearner(3), **more)
    return insitu.run(plan, clients, rounds=rounds, engine="inline", store=None, observers=[])


def test_a_run_is_train_then_mix_by_a_naive_loop():
    w = matrix("ring", 6)
    nodes = np.zeros((6, 4))
    for _ in range(4):
        for i in range(6):
            x, y = np.c_[X[10 * i : 10 * i + 10], np.ones(10)], Y[10 * i : 10 * i + 10]
            for _ in range(2):
                nodes[i] = nodes[i] - 0.05 * 2 * x.T @ (x @ nodes[i] - y) / 10
        nodes = w @ nodes
    result = run(Gossip(topology="ring", lr=0.05, epochs=2, batch_size=None), 4)
    for i in range(6):
        own = result.state["nodes"][str(i)]["shared"]
        np.testing.assert_allclose(np.r_[own["weight"][0], own["bias"]], nodes[i], rtol=1e-11)
    np.testing.assert_allclose(result.params["weight"][0], nodes.mean(axis=0)[:3], rtol=1e-11)
    distance = np.sqrt(((nodes - nodes.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert result.history[-1]["disagreement"] == pytest.approx(distance)


def test_more_edges_agree_sooner():
    found = {
        topology: run(Gossip(topology=topology, lr=0.05, batch_size=None)).history[-1]["disagreement"]
        for topology in TOPOLOGIES
    }
    assert found["complete"] < 1e-12
    assert found["complete"] < found["exponential"] < found["ring"]


class Flaky:
    def __init__(self, down):
        self.down = down

    def __len__(self):
        return len(CLIENTS)

    def __getattr__(self, name):
        return getattr(CLIENTS, name)

    def at(self, place):
        if place == self.down:
            raise ConnectionError("gone")
        return CLIENTS.at(place)


def test_a_node_that_fails_keeps_its_model_and_the_others_go_on():
    result = run(Gossip(lr=0.05, batch_size=None), 3, clients=Flaky(2))
    assert [row["failed"] for row in result.history] == [1, 1, 1]
    assert "2" not in result.state["nodes"]
    assert len(result.state["nodes"]) == 5


def test_a_cohort_of_some_leaves_the_others_where_they_were():
    result = run(Gossip(lr=0.05, batch_size=None), 1, cohort=insitu.Uniform(3))
    assert len(result.state["nodes"]) == 3
    before = tree.flatten({k: v["shared"] for k, v in sorted(result.state["nodes"].items())})
    assert np.isfinite(before).all()


def test_bad_arguments_are_refused():
    with pytest.raises(PlanError, match="'star'"):
        Gossip(topology="star")
    with pytest.raises(PlanError, match="'star'"):
        Neighbours("star")
