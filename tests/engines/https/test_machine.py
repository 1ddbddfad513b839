"""The rules of a call, against a naive count, whatever happens in whatever order."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.core.federation import Entry
from insitu.engines.https.calls import machine
from insitu.engines.https.calls.machine import (
    Arrives,
    Asks,
    Cancels,
    Closes,
    Fails,
    HandsOut,
    Knows,
    Lives,
    Records,
    Refuses,
    Ticks,
)
from insitu.rounds.policy import Policy

SITES = ("a", "b", "c", "d", "e")


def play(state, events):
    """All events in turn; the state, the entries, and what followed from each."""
    entries, followed = [], []
    for now, event in events:
        state, effects = machine.step(state, event, now)
        entries += [effect.entry for effect in effects if isinstance(effect, Records)]
        followed.append(effects)
    return state, entries, followed


def arrives(site, digest="d"):
    return Arrives(site, {"manifest": f"{site}-{digest}", "bytes": 10})


things = st.one_of(
    st.builds(Asks, st.sampled_from(SITES)),
    st.builds(Lives, st.sampled_from(SITES), st.sampled_from(["", "training"])),
    st.builds(arrives, st.sampled_from(SITES), st.sampled_from(["d", "other"])),
    st.builds(Fails, st.sampled_from(SITES), st.sampled_from(["out of memory", "refused"])),
    st.just(Ticks()),
)
times = st.lists(st.tuples(st.floats(0, 5), things), max_size=40).map(
    lambda steps: [(sum(wait for wait, _ in steps[: i + 1]), thing) for i, (_, thing) in enumerate(steps)]
)
policies = st.builds(
    Policy,
    quorum=st.sampled_from([0.2, 0.5, 1.0]),
    deadline=st.sampled_from([None, timedelta(seconds=20), timedelta(seconds=60)]),
    missed=st.sampled_from(["retry", "wait", "stop"]),
    gone=st.sampled_from([None, timedelta(seconds=15)]),
)


@settings(max_examples=300, deadline=None)
@given(events=times, policy=policies, wanted=st.integers(2, 5))
def test_each_counts_once_and_nothing_changes_what_is_written(events, policy, wanted):
    state, entries, _ = play(machine.opened(SITES, wanted, policy), events)
    assert [entry.seq for entry in entries] == list(range(len(entries)))
    assert len({entry.client for entry in entries}) == len(entries)  # nobody counts twice
    accepted = [entry.client for entry in entries if entry.kind == "accepted"]
    assert len(accepted) <= wanted
    assert state.arrived == len(accepted)
    assert state.failed == len(entries) - len(accepted)
    # Complete exactly when enough have arrived, or all have an entry.
    assert bool(state.ends) == (len(accepted) >= wanted or len(entries) == len(SITES))


@settings(max_examples=300, deadline=None)
@given(events=times, policy=policies, wanted=st.integers(2, 5), cut=st.integers(0, 40), after=times)
def test_what_is_replayed_goes_on_as_if_it_had_never_stopped(events, policy, wanted, cut, after):
    fresh = machine.opened(SITES, wanted, policy)
    state, entries, _ = play(fresh, events)
    again = machine.replayed(fresh, entries, now=0.0)
    for name in ("asked", "seq", "arrived", "failed", "ends"):
        assert getattr(again, name) == getattr(state, name)
    assert machine.ready(again) == machine.ready(state)
    assert {c: s.data for c, s in again.who.items()} == {c: s.data for c, s in state.who.items()}


@settings(max_examples=200, deadline=None)
@given(order=st.permutations(SITES), failing=st.sets(st.sampled_from(SITES)))
def test_the_order_of_arrival_does_not_matter(order, failing):
    events = [(1.0, Fails(site, "no") if site in failing else arrives(site)) for site in order]
    state, _, followed = play(machine.opened(SITES, 5, Policy()), events)
    assert state.ends
    assert machine.ready(state) == [0, 1, 2, 3, 4]
    assert {c for c, s in state.who.items() if s.phase == "failed"} == failing
    assert all(any(isinstance(effect, Records) for effect in effects) for effects in followed)


def test_those_known_from_the_first_on_are_told_at_once():
    state, *_ = play(machine.opened(SITES, 5, Policy()), [(1, arrives("b")), (2, arrives("d"))])
    assert machine.ready(state) == []
    state, *_ = play(state, [(3, arrives("a"))])
    assert machine.ready(state) == [0, 1]


def test_over_selection_takes_the_first_and_closes_for_the_rest():
    state, entries, followed = play(
        machine.opened(SITES, 3, Policy(over_select=0.6)),
        [(1, arrives("e")), (2, arrives("b")), (3, arrives("d")), (4, arrives("a"))],
    )
    assert [entry.client for entry in entries] == ["e", "b", "d"]
    assert machine.ready(state) == [1, 3, 4]
    assert Cancels(("a", "c"), state.ends) in followed[2]
    assert [type(effect) for effect in followed[3]] == [Refuses]
    assert followed[3][0].code == "ROUND_CLOSED"


def test_the_same_again_counts_as_it_did_and_another_is_stale():
    state, entries, followed = play(
        machine.opened(SITES, 5, Policy()), [(1, arrives("a")), (2, arrives("a")), (3, arrives("a", "other"))]
    )
    assert len(entries) == 1
    assert followed[1] == [Knows({"manifest": "a-d", "bytes": 10})]
    assert followed[2][0].code == "STALE_ROUND"
    assert state.arrived == 1


@pytest.mark.parametrize("missed", ["retry", "stop"])
def test_a_deadline_fails_whoever_is_missing(missed):
    policy = Policy(quorum=0.4, deadline=timedelta(seconds=60), missed=missed)
    state = machine.opened(SITES, 5, policy)
    assert machine.wakes(state) == 60
    state, entries, _ = play(state, [(1, Asks("a")), (2, arrives("a")), (59.9, Ticks()), (60, Ticks())])
    assert [(entry.client, entry.kind) for entry in entries] == [("a", "accepted"), *((s, "failed") for s in "bcde")]
    assert "60 s" in entries[1].data["error"]
    assert machine.ready(state) == [0, 1, 2, 3, 4]
    assert machine.wakes(state) is None


def test_a_policy_that_waits_goes_on_until_the_quorum_is_there():
    policy = Policy(quorum=0.4, deadline=timedelta(seconds=60), missed="wait")
    state, entries, _ = play(machine.opened(SITES, 5, policy), [(2, arrives("a")), (60, Ticks()), (500, Ticks())])
    assert state.late
    assert not state.ends
    assert len(entries) == 1
    assert machine.wakes(state) is None
    state, entries, _ = play(state, [(700, arrives("e"))])
    assert [entry.client for entry in entries] == ["e", "b", "c", "d"]
    assert state.ends


def test_whoever_has_not_been_heard_of_is_gone():
    policy = Policy(gone=timedelta(seconds=30))
    state = machine.opened(("a", "b"), 2, policy)
    state, _, followed = play(state, [(1, Asks("a")), (2, Asks("b")), (29, Lives("b", "training"))])
    assert followed[0] == [HandsOut("a")]
    assert state.who["b"].doing == "training"
    assert machine.wakes(state) == 31
    state, entries, followed = play(state, [(31, Ticks())])
    assert [(entry.client, entry.kind) for entry in entries] == [("a", "failed")]
    assert isinstance(followed[0][-1], Cancels)
    state, entries, _ = play(state, [(58, arrives("b"))])
    assert state.ends


def test_closing_is_written_down_and_tells_the_others():
    state, entries, followed = play(machine.opened(SITES, 5, Policy()), [(1, arrives("a")), (2, Closes("enough"))])
    assert entries[-1] == Entry(1, "closed", "", 2, {"reason": "enough"})
    assert followed[-1][-1] == Cancels(("b", "c", "d", "e"), "enough")
    state, _, followed = play(state, [(3, Asks("b")), (4, arrives("b")), (5, Asks("a"))])
    assert [effects[0].code for effects in followed] == ["ROUND_CLOSED", "ROUND_CLOSED", "STALE_ROUND"]


def test_a_stranger_is_refused():
    _, _, followed = play(machine.opened(SITES, 5, Policy()), [(1, Asks("z"))])
    assert followed[0][0].code == "UNKNOWN_TASK"
