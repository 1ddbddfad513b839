"""A parameter server in simulated time: a bound on how far the fast may be ahead, from none at all to infinity."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import insitu
from insitu import Plan
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedsgd import FedSGD
from insitu.algorithms.local_sgd import LocalSGD
from insitu.core import tree, wire
from insitu.core.errors import PlanError
from insitu.data.clients import Clients
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.buffered import Buffered, Sky, next_arrivals
from insitu.rounds.world import LogNormal, Spells, World
from insitu.rounds.world.crowd import Crowd

X = np.random.default_rng(0).normal(size=(120, 3))
Y = (X[:, 0] > 0).astype(int)
UNEVEN = World(speed=LogNormal(1.0, 0.8))
LOSSY = World(
    speed=LogNormal(20.0, 0.5), dropout=0.2, jitter=0.3, available=Spells(timedelta(seconds=60), timedelta(seconds=60))
)


def workers(n):
    return Clients.from_arrays(X, Y, np.array_split(np.arange(120), n))


def run(n, rounds=6, algorithm=None, world=UNEVEN, **more):
    buffered = Buffered(**{"size": 1, "staleness": 0.0, **more.pop("buffered")}) if "buffered" in more else None
    plan = Plan(algorithm or FedAvg(lr=0.1), LogisticLearner(), buffered=buffered, world=world, evaluate_every=0)
    return insitu.run(plan, workers(n), rounds=rounds, **{"engine": "inline", "store": None, "observers": [], **more})


# ------------------------------------------------------------ the two ends


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.1, epochs=2), FedSGD(lr=0.5), LocalSGD(lr=0.1, steps=3)])
def test_a_bound_of_zero_is_synchronous(algorithm):
    """Two workers to the bit, since a + b is b + a; eight to rounding, as they are summed as they arrive."""
    two, eight = (run(n, algorithm=algorithm, buffered={"size": n, "bound": 0}) for n in (2, 8))
    np.testing.assert_array_equal(two.params["weight"], run(2, algorithm=algorithm).params["weight"])
    np.testing.assert_allclose(eight.params["weight"], run(8, algorithm=algorithm).params["weight"], rtol=1e-12)
    for result in (two, eight):
        assert [row["staleness"] for row in result.history] == [0] * 6
        assert [row["lead"] for row in result.history] == [0] * 6
    # A round takes as long as its slowest worker.
    assert [row["clock"] for row in eight.history] == pytest.approx(
        [row["clock"] for row in run(8, algorithm=algorithm).history]
    )


@pytest.mark.parametrize("world", [UNEVEN, LOSSY])
def test_a_bound_that_nobody_reaches_is_asynchronous_to_the_bit(world):
    none, wide = (run(8, 30, world=world, buffered={"bound": bound, "concurrency": 8}) for bound in (None, 10**6))
    assert wire.encode(none.state) == wire.encode(wide.state)
    assert [row["clock"] for row in none.history] == [row["clock"] for row in wide.history]
    assert wide.history[-1]["lead"] > 2
    assert "lead" not in none.history[-1]


# ------------------------------------------------------------ between them


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6), st.booleans())
def test_nobody_starts_who_is_further_ahead_than_the_bound(bound, n, size, seed, lossy):
    """Every start and every landing, against counts of our own."""
    size = min(size, n)
    world = LOSSY if lossy else UNEVEN
    plan = Plan(FedAvg(), LogisticLearner(), buffered=Buffered(size=size, bound=bound), world=world)
    crowd, sky = Crowd(world, workers(n), seed), Sky.of({})
    done, begun = np.zeros(n, dtype=int), {}
    for version in range(25):
        landed = next_arrivals(plan, sky, version, {}, 8, crowd)
        for flight in landed.arrived:
            done[flight.place] += 1
        for flight in (*landed.arrived, *landed.sky.flights):
            begun[flight.sequence] = flight
        assert done.max() - done.min() <= bound + 1
        assert landed.measures["lead"] == np.ptp(done)
        assert list(landed.sky.done) == done.tolist()
        for flight in landed.sky.flights:  # at work on its next task
            assert done[flight.place] <= done.min() + bound
        sky = Sky.of(wire.decode(wire.encode(landed.sky.tree())))
        assert sky == landed.sky
    assert done.sum() == 25 * size


def test_the_wider_the_bound_the_less_is_waited():
    seconds = [
        run(8, 80, buffered={"bound": bound, "concurrency": 8}).history[-1]["clock"] for bound in (0, 1, 4, None)
    ]
    assert seconds[0] > seconds[1] > seconds[2] > seconds[3]


def test_equal_workers_never_wait():
    """15 examples at 1 a second: 8 land every 15 seconds, whatever the bound."""
    for bound in (0, 3):
        result = run(8, 24, world=World(speed=1.0), buffered={"bound": bound})
        assert [row["clock"] for row in result.history] == [15.0] * 8 + [30.0] * 8 + [45.0] * 8


def test_one_slow_worker_holds_the_others_by_hand(tmp_path):
    """Ten examples each; speeds 1 and 10 a second: the fast one does a task a second, and s + 1 ahead it waits."""
    (tmp_path / "speeds.csv").write_text("speed\n1\n10\n")
    from insitu.rounds.world import Measured

    found = {}
    for seed in range(20):  # devices are dealt by seed: one in which both occur
        world = World(speed=Measured(tmp_path / "speeds.csv", "speed"))
        clients = Clients.from_arrays(X[:20], Y[:20], np.array_split(np.arange(20), 2))
        crowd = Crowd(world, clients, seed)
        speeds = world.speed.of(seed, "speed", np.arange(2))
        if set(speeds) == {1.0, 10.0}:
            plan = Plan(FedAvg(), LogisticLearner(), buffered=Buffered(size=1, bound=2), world=world)
            sky, clocks = Sky.of({}), []
            for version in range(9):
                landed = next_arrivals(plan, sky, version, {}, 8, crowd)
                clocks.append((landed.measures["clock"], int(landed.arrived[0].place)))
                sky = landed.sky
            fast = int(np.argmax(speeds))
            found[seed] = clocks
            # Three tasks, then it waits for the slow one's first at 10 s; one more; and so on.
            assert clocks == [
                (1.0, fast), (2.0, fast), (3.0, fast), (10.0, 1 - fast), (11.0, fast),
                (20.0, 1 - fast), (21.0, fast), (30.0, 1 - fast), (31.0, fast),
            ]  # fmt: skip
            break
    assert found


@pytest.mark.parametrize("bound", [0, 2])
def test_a_resumed_run_waits_for_the_same_workers(tmp_path, bound):
    options = {"world": LOSSY, "buffered": {"size": 2, "bound": bound}}
    whole = run(6, 12, **options)
    half = run(6, 5, store=tmp_path / "a.db", **options)
    rest = run(6, 12, store=tmp_path / "a.db", resume=half.id, **options)
    assert wire.encode(rest.state) == wire.encode(whole.state)
    assert [row["lead"] for row in rest.history] == [row["lead"] for row in whole.history]
    assert tree.not_finite(rest.state) is None


@pytest.mark.parametrize("bound", [-1, 1.5, True, "2"])
def test_bad_bounds(bound):
    with pytest.raises(PlanError, match=f"bound={bound!r}"):
        Buffered(bound=bound)


def test_all_are_at_work_under_a_bound_unless_told_otherwise():
    assert Buffered(3).at_work(50) == 6
    assert Buffered(3, bound=1).at_work(50) == 50
    assert Buffered(3, concurrency=9, bound=1).at_work(50) == 9
    assert dataclasses.replace(Buffered(3), concurrency=4).at_work(50) == 4
