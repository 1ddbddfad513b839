"""Gossip: the graphs, the mixing matrices, and what mixing keeps."""

from __future__ import annotations

import dataclasses

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
from insitu.core.schedules import Step
from insitu.reduce.neighbours import TOPOLOGIES, Neighbours, complete, exponential, grid, mixing, pairs, ring

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


# ------------------------------------------------------------ pairs drawn anew in every round


@given(st.integers(1, 25), st.integers(0, 10**6), st.integers(1, 99))
def test_pairs_are_a_matching_in_which_one_at_most_is_left_out(n, seed, round):
    edges = pairs(n, seed, round)
    assert sum(len(neighbours) for neighbours in edges) == n - n % 2
    for i, neighbours in enumerate(edges):
        assert all(edges[j] == {i} and j != i for j in neighbours)
    assert edges == pairs(n, seed, round)


def test_every_pair_comes_as_often_as_any_other():
    counts = np.zeros((6, 6))
    for round in range(3000):
        for i, neighbours in enumerate(pairs(6, 5, round)):
            for j in neighbours:
                counts[i, j] += 1
    seen = counts[~np.eye(6, dtype=bool)]
    assert np.abs(seen / 600 - 1).max() < 0.2  # 600 of 3000 rounds expected, standard deviation 22
    assert (np.diag(counts) == 0).all()


def test_pairs_halve_by_hand():
    w = np.zeros((6, 4))
    result = run(Gossip(topology="pairs", lr=0.05, batch_size=None), 3)
    for round in range(1, 4):
        trained = w.copy()
        for i in range(6):
            x, y = np.c_[X[10 * i : 10 * i + 10], np.ones(10)], Y[10 * i : 10 * i + 10]
            trained[i] -= 0.05 * 2 * x.T @ (x @ w[i] - y) / 10
        for i, (j,) in enumerate(pairs(6, 0, round)):
            w[i] = (trained[i] + trained[j]) / 2
    for i in range(6):
        own = result.state["nodes"][str(i)]["shared"]
        np.testing.assert_allclose(np.r_[own["weight"][0], own["bias"]], w[i], rtol=1e-11)


# ------------------------------------------------------------ agreement at the rate that the spectral gap predicts

MANY = Clients.from_arrays(
    (GAUSS := np.random.default_rng(2).normal(size=(80, 3))), GAUSS @ [1.0, 2.0, 3.0] + np.repeat(np.arange(16), 5),
    np.array_split(np.arange(80), 16),
)  # fmt: skip


def distances(algorithm, rounds):
    """One round of training, after which the learning rate is as good as none: what follows is mixing alone."""
    still = dataclasses.replace(algorithm, lr=Step(0.1, every=1, factor=1e-15), batch_size=None)
    return np.array(run(still, rounds, clients=MANY).history.column("disagreement")[1])


@pytest.mark.parametrize(("topology", "until"), [("ring", 60), ("grid", 40), ("exponential", 20)])
def test_agreement_comes_as_fast_as_the_spectral_gap_predicts(topology, until):
    found = distances(Gossip(topology=topology), until)
    second = np.sort(np.abs(np.linalg.eigvalsh(matrix(topology, 16))))[-2]
    rate = np.log(found[until - 1] / found[until - 11]) / 10
    assert rate == pytest.approx(np.log(second), rel=0.1)
    assert (found[1:] <= second * found[:-1] * (1 + 1e-9)).all()  # and no round does less


def test_random_pairs_agree_as_fast_as_their_mean_matrix_predicts():
    """Of a disagreement's square, a matching of n keeps (1 - 1/(n-1))/2 in the mean over matchings."""
    found = distances(Gossip(topology="pairs"), 40) ** 2
    kept = (found[1:] / found[:-1]).mean()
    assert kept == pytest.approx((1 - 1 / 15) / 2, rel=0.1)


def test_on_the_complete_graph_mixing_is_the_mean_of_all():
    """An all-reduce: every node holds the same bits, those of the mean in the cohort's order."""
    values = np.random.default_rng(4).normal(size=(8, 5))
    found = mixed("complete", values)
    mean = sum((values[i] / 8 for i in range(1, 8)), start=values[0] / 8)
    for node in found.values():
        np.testing.assert_array_equal(node, mean)


def test_bad_arguments_are_refused():
    with pytest.raises(PlanError, match="'star'"):
        Gossip(topology="star")
    with pytest.raises(PlanError, match="'star'"):
        Neighbours("star")
