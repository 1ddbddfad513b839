"""Asynchronous rounds in simulated time: closed forms, and an event loop by hand."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import insitu
from insitu import Plan, Policy
from insitu.algorithms.fedavg import FedAvg
from insitu.core import wire
from insitu.core.errors import PlanError, RoundError
from insitu.data.clients import Clients
from insitu.learners.numpy import LogisticLearner
from insitu.rounds import buffered
from insitu.rounds.buffered import Buffered, Flight, Sky, next_arrivals
from insitu.rounds.world import LogNormal, Spells, World
from insitu.rounds.world.crowd import Crowd

X = np.random.default_rng(0).normal(size=(120, 3))
Y = (X[:, 0] > 0).astype(int)
CLIENTS = Clients.from_arrays(X, Y, np.array_split(np.arange(120), 30))
PHONES = World(
    speed=LogNormal(1.0, 0.7), dropout=0.2, jitter=0.1, available=Spells(timedelta(seconds=60), timedelta(seconds=60))
)


def plan(world=None, **more):
    return Plan(FedAvg(lr=0.1), LogisticLearner(), buffered=Buffered(**more), world=world, evaluate_every=0)


def run(chosen, rounds=6, **more):
    return insitu.run(chosen, CLIENTS, rounds=rounds, **{"engine": "inline", "store": None, "observers": [], **more})


def test_equal_devices_land_in_waves():
    """4 examples at 2 a second: ten at work land together every two seconds, so five make a round at once."""
    result = run(plan(World(speed=2.0), size=5, concurrency=10))
    assert [row["clock"] for row in result.history] == [2, 2, 4, 4, 6, 6]
    assert [row["simulated_seconds"] for row in result.history] == [2, 0, 2, 0, 2, 0]


@pytest.mark.parametrize("world", [PHONES, dataclasses.replace(PHONES, dropout=0.0), None])
def test_the_flights_of_a_run(world):
    """Round after round: who lands does so in order, nobody is at work twice, seats are taken where they can be."""
    chosen = plan(world, size=4, concurrency=9)
    crowd = Crowd(world or World(speed=LogNormal(1.0, 0.5), jitter=0.05), CLIENTS, 3)
    sky, lost = Sky.of({}), 0
    for version in range(40):
        before = {flight.place for flight in sky.flights}
        landed = next_arrivals(chosen, sky, version, {"w": version}, 8, crowd)
        due = [flight.due for flight in landed.arrived]
        assert due == sorted(due)
        assert sky.clock <= due[0]
        assert landed.sky.clock == due[-1]
        assert len(landed.arrived) == 4
        assert all(flight.answers for flight in landed.arrived)
        places = [f.place for f in landed.sky.flights] + [f.place for f in landed.arrived]
        assert len(set(places)) == len(places)
        assert {f.place for f in landed.arrived if f.version < version} <= before
        assert len(landed.sky.flights) <= 9
        assert min((f.due for f in landed.sky.flights), default=np.inf) >= due[-1]
        assert set(landed.sky.messages) == {f.version for f in landed.sky.flights}
        assert {f.version for f in landed.arrived} <= set(landed.messages)
        lost += landed.measures["dropped"]
        sky = Sky.of(wire.decode(wire.encode(landed.sky.tree())))
        assert sky == landed.sky
    assert (lost > 0) == (world is not None)


def test_clients_start_only_while_they_are_available():
    crowd = Crowd(PHONES, CLIENTS, 3)
    chosen = plan(PHONES, size=1, concurrency=1)
    sky = Sky.of({})
    for version in range(60):
        began = sky.clock
        landed = next_arrivals(chosen, sky, version, {}, 8, crowd)
        place, due = landed.arrived[0].place, landed.arrived[0].due
        begin, end = crowd._spells(np.array([place]), due)
        assert begin[0] <= due <= end[0] or due == end[0]
        assert began <= due
        sky = landed.sky


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 10**6))
def test_an_event_loop_by_hand(size, more, seed):
    """Without availability or loss: seats, seconds and order by a list that is searched through."""
    world = World(speed=LogNormal(1.0, 0.8))
    chosen, crowd = plan(world, size=size, concurrency=size + more), Crowd(world, CLIENTS, seed)
    speed = world.speed.of(seed, "speed", np.arange(30))
    sky, at_work, clock = Sky.of({}), [], 0.0
    starts = []
    for version in range(5):
        landed = next_arrivals(chosen, sky, version, {}, 8, crowd)
        # Who is drawn is taken as given; when each ends, and so who is first, is worked out anew.
        told = {f.sequence: f.place for f in (*landed.arrived, *landed.sky.flights)}
        expected = []
        while len(expected) < size:
            while len(at_work) < size + more:
                place = told[len(starts)]
                starts.append(place)
                at_work.append((clock + 4 / speed[place], len(starts) - 1, place))
            first = min(at_work)
            at_work.remove(first)
            clock = first[0]
            expected.append(first[2])
        assert [f.place for f in landed.arrived] == expected
        assert landed.sky.clock == pytest.approx(clock)
        sky = landed.sky


def test_who_starts_next_is_uniform_among_those_that_can():
    world = World(speed=1.0, available=Spells(timedelta(seconds=10), timedelta(seconds=30)))
    crowd = Crowd(world, CLIENTS, 3)
    here = set(np.flatnonzero(crowd.available(np.arange(30), 0.0)).tolist())
    assert 3 < len(here) < 15
    counts = dict.fromkeys(here, 0)
    from insitu.rounds.buffered import _Tower

    for few, busy in ((True, set()), (False, set(range(30)) - here)):  # by trying, and by a list of the rest
        tower = _Tower(plan(world), crowd, 0, 0)
        for sequence in range(300 * len(here)):
            counts[tower.free(sequence if few else -1 - sequence, busy, 0.0)] += 1
        assert max(counts.values()) < 1.25 * 300 * (1 if few else 2)
        assert min(counts.values()) > 0.75 * 300 * (1 if few else 2)


def test_a_resumed_run_goes_on_with_the_same_flights(tmp_path):
    chosen = plan(PHONES, size=4, concurrency=9)
    whole = run(chosen, rounds=9)
    half = run(chosen, rounds=4, store=tmp_path / "a.db")
    rest = run(chosen, rounds=9, store=tmp_path / "a.db", resume=half.id)
    assert wire.encode(rest.state) == wire.encode(whole.state)
    assert [{**row, "seconds": 0} for row in rest.history] == [{**row, "seconds": 0} for row in whole.history]


def test_nobody_who_ever_lands_is_an_error(monkeypatch):
    """Work takes an hour and nobody is there for longer than minutes."""
    monkeypatch.setattr(buffered, "MOST_LOST", 100)
    with pytest.raises(RoundError, match="were lost one after another"):
        run(plan(dataclasses.replace(PHONES, speed=0.001), size=2))


@pytest.mark.parametrize(
    "policy", [Policy(over_select=0.5), Policy(deadline=timedelta(seconds=5))], ids=["over_select", "deadline"]
)
def test_what_waits_for_nobody_has_no_deadline(policy):
    with pytest.raises(PlanError, match="wait for nobody"):
        Plan(FedAvg(), LogisticLearner(), buffered=Buffered(3), policy=policy)


def test_flights_are_ordered_by_when_they_end():
    assert Flight(1.0, 5, 0, 0, True) < Flight(2.0, 0, 0, 0, True) < Flight(2.0, 1, 0, 0, False)
