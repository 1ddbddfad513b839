"""Push-sum: shares whose columns sum to one, masses that make up for rows that do not, and stochastic gradient push."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import insitu
from insitu.algorithms.gossip import Gossip
from insitu.algorithms.push_sum import PushSum
from insitu.core import tree, wire
from insitu.core.errors import PlanError
from insitu.core.schedules import Step
from insitu.core.types import Context, Update
from insitu.data.clients import Clients
from insitu.learners.numpy import LinearLearner
from insitu.reduce import push_sum
from insitu.reduce.neighbours import TOPOLOGIES, mixing
from insitu.reduce.push_sum import DIRECTED, GRAPHS, directed_exponential, directed_ring, one_peer, shares

graphs = st.sampled_from(sorted(GRAPHS))


def receivers(graph, n, round=1):
    return DIRECTED[graph](n, round) if graph in DIRECTED else push_sum.edges_of(graph, n, 0, round)


def matrix(graph, n, round=1):
    """P, from the definition: node j splits what it has evenly among its receivers and itself."""
    p = np.zeros((n, n))
    for j, others in enumerate(receivers(graph, n, round)):
        for i in {*others, j}:
            p[i, j] = 1 / (1 + len(others))
    return p


def test_edges_are_right():
    assert directed_ring(4, 1) == [{1}, {2}, {3}, {0}]
    assert directed_exponential(9, 1)[0] == {1, 2, 4, 8}
    assert directed_exponential(9, 1)[8] == {0, 1, 3, 7}
    assert [one_peer(8, round)[5] for round in (1, 2, 3, 4)] == [{6}, {7}, {1}, {6}]
    assert one_peer(1, 3) == [set()]
    assert one_peer(2, 7) == [{1}, {0}]


@given(graphs, st.integers(1, 30), st.integers(1, 9))
def test_shares_are_the_definition_and_columns_sum_to_one(graph, n, round):
    p = np.zeros((n, n))
    for i, row in enumerate(shares(receivers(graph, n, round))):
        p[i, list(row)] = list(row.values())
    np.testing.assert_allclose(p, matrix(graph, n, round), atol=1e-15)
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-14)


@given(st.sampled_from(["ring", "exponential", "complete"]), st.integers(2, 20))
def test_where_all_have_equally_many_neighbours_shares_are_gossips_weights_to_the_bit(graph, n):
    assert shares(TOPOLOGIES[graph](n)) == mixing(graph, n)


def told(graph, values, masses, failed=(), round=1):
    names = [f"n{i}" for i in range(len(values))]
    reduce = push_sum.PushSum(graph)
    accumulator = reduce.zero()
    for i, (x, w) in enumerate(zip(values, masses, strict=True)):
        if i not in failed:
            value = {"shared": {"w": np.asarray(x)}, "mass": {"total": np.asarray(w)}, "buffers": {"m": np.asarray(x)}}
            accumulator = reduce.add(accumulator, Update(value, {}), names[i])
    total = reduce.finish(accumulator, Context(round, len(values), names, 0))
    return {names.index(node): value for node, value in total.value.items()}


@given(graphs, st.integers(1, 12), st.integers(1, 5))
def test_it_is_the_matrix_times_values_and_masses(graph, n, round):
    rng = np.random.default_rng(n)
    values, masses, p = rng.normal(size=(n, 3)), rng.uniform(0.5, 2, n), matrix(graph, n, round)
    found = told(graph, values, masses, round=round)
    for i in range(n):
        np.testing.assert_allclose(found[i]["shared"]["w"], p[i] @ values, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found[i]["mass"]["total"], p[i] @ masses, rtol=1e-12)
        weights = p[i] * masses
        np.testing.assert_allclose(found[i]["buffers"]["m"], weights @ values / weights.sum(), rtol=1e-12, atol=1e-13)


@given(graphs, st.integers(1, 12), st.sets(st.integers(0, 11), max_size=5))
def test_nothing_is_lost_where_some_nodes_fail(graph, n, failed):
    rng = np.random.default_rng(n)
    values, masses = rng.normal(size=(n, 3)), rng.uniform(0.5, 2, n)
    found = told(graph, values, masses, failed)
    present = [i for i in range(n) if i not in failed]
    assert sorted(found) == present
    if present:
        np.testing.assert_allclose(sum(found[i]["shared"]["w"] for i in present), values[present].sum(0), atol=1e-12)
        np.testing.assert_allclose(sum(found[i]["mass"]["total"] for i in present), masses[present].sum(), rtol=1e-12)


# ------------------------------------------------------------ runs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=70) + np.repeat(np.arange(7), 10)
CLIENTS = Clients.from_arrays(X, Y, np.array_split(np.arange(70), 7))


def run(algorithm, rounds=5, n=7, **more):
    clients = CLIENTS if n == 7 else Clients.from_arrays(X, Y, np.array_split(np.arange(70), n))
    plan = insitu.Plan(algorithm, learner=LinearLearner(3))
    return insitu.run(plan, clients, **{"rounds": rounds, "engine": "inline", "store": None, "observers": [], **more})


def flat(node):
    return np.r_[node["shared"]["weight"][0], node["shared"]["bias"]]


@pytest.mark.parametrize("graph", ["directed_ring", "directed_exponential", "one_peer", "grid"])
def test_a_run_is_stochastic_gradient_push_by_a_naive_loop(graph):
    x, w = np.zeros((7, 4)), np.ones(7)
    for round in range(1, 6):
        for i in range(7):
            z = start = x[i] / w[i]
            a, b = np.c_[X[10 * i : 10 * i + 10], np.ones(10)], Y[10 * i : 10 * i + 10]
            for _ in range(2):
                z = z - 0.05 * 2 * a.T @ (a @ z - b) / 10
            x[i] += z - start
        p = matrix(graph, 7, round)
        x, w = p @ x, p @ w
    result = run(PushSum(topology=graph, lr=0.05, epochs=2, batch_size=None))
    for i in range(7):
        node = result.state["nodes"][str(i)]
        np.testing.assert_allclose(flat(node), x[i], rtol=1e-10)
        assert float(node["mass"]["total"]) == pytest.approx(w[i], rel=1e-12)
    np.testing.assert_allclose(result.params["weight"][0], x[:, :3].sum(0) / w.sum(), rtol=1e-10)
    z = x / w[:, None]
    distance = np.sqrt(((z - z.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert result.history[-1]["disagreement"] == pytest.approx(distance)


@pytest.mark.parametrize(
    ("graph", "n"), [("ring", 7), ("exponential", 7), ("complete", 7), ("complete", 4), ("pairs", 4)]
)
def test_on_a_symmetric_graph_it_is_gossip(graph, n):
    """To the bit where the shares are powers of two, and else to rounding: then masses are one only nearly."""
    options = {"topology": graph, "lr": 0.05, "epochs": 2, "batch_size": 4, "optimizer": "momentum"}
    one, other = run(PushSum(**options), n=n), run(Gossip(**options), n=n)
    for node, own in other.state["nodes"].items():
        np.testing.assert_allclose(flat(one.state["nodes"][node]), flat(own), rtol=1e-13, atol=1e-14)
        if n == 4:
            assert wire.encode(one.state["nodes"][node]["shared"]) == wire.encode(own["shared"])
            assert float(one.state["nodes"][node]["mass"]["total"]) == 1


def still(graph, rounds, n):
    """One round of training; after it, mixing alone."""
    result = run(PushSum(topology=graph, lr=Step(0.1, every=1, factor=1e-15), batch_size=None), rounds, n=n)
    return result, np.array(result.history.column("disagreement")[1])


def test_one_peer_agrees_after_log_n_rounds():
    _, found = still("one_peer", 4, 8)
    assert found[1] > 1e-3
    assert found[2] < 1e-12


@pytest.mark.parametrize(
    ("graph", "n", "until"), [("directed_ring", 7, 60), ("directed_exponential", 7, 20), ("grid", 7, 50)]
)
def test_nodes_agree_on_the_mean_at_the_rate_of_the_second_eigenvalue(graph, n, until):
    result, found = still(graph, until, n)
    trained = run(Gossip(topology="complete", lr=0.1, batch_size=None), 1, n=n).params["weight"][0]
    for node in result.state["nodes"].values():
        np.testing.assert_allclose(node["shared"]["weight"][0] / node["mass"]["total"], trained, rtol=0.02)
    second = np.sort(np.abs(np.linalg.eigvals(matrix(graph, n))))[-2]
    assert np.log(found[until - 1] / found[until - 13]) / 12 == pytest.approx(np.log(second), rel=0.1)


def test_masses_matter_where_rows_do_not_sum_to_one():
    """On a grid without wrapping, corners get less than others: without the masses, nodes would not agree."""
    result, _ = still("grid", 50, 7)
    sums = np.array([flat(node) for node in result.state["nodes"].values()])
    assert np.ptp(sums, axis=0).max() > 0.1 * np.abs(sums).max()


def test_a_resumed_run_has_the_same_bits(tmp_path):
    algorithm = PushSum(lr=0.05, batch_size=4, optimizer="momentum", keep_optimizer=True)
    whole = run(algorithm, 6)
    half = run(algorithm, 3, store=tmp_path / "a.db")
    rest = run(algorithm, 6, store=tmp_path / "a.db", resume=half.id)
    assert wire.encode(rest.state) == wire.encode(whole.state)
    assert tree.not_finite(rest.state) is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"topology": "star"}, "'star'"),
        ({"server": "adam"}, "has no server"),
        ({"server_lr": 0.5}, "has no server"),
        ({"weights": "examples"}, "weights='examples'"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(PlanError, match=match):
        dataclasses.replace(PushSum(), **options)
    with pytest.raises(PlanError, match="'star'"):
        push_sum.PushSum("star")


def test_gossips_reduce_is_refused():
    with pytest.raises(PlanError, match="PushSum needs a total a node, by pushed sums"):
        insitu.Plan(PushSum(), learner=LinearLearner(3), reduce=Gossip().reduce())
