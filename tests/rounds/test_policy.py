"""The policy as a pure state machine: random events, and what may never happen."""

from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from insitu.core.errors import PlanError
from insitu.rounds.policy import Policy

hundredths = st.integers(0, 100).map(lambda k: k / 100)
events = st.lists(st.tuples(st.sampled_from(["arrived", "failed", "tick"]), st.floats(0, 3)), max_size=40)


@given(hundredths, hundredths, st.none() | st.integers(1, 20), st.integers(1, 12), events)
def test_a_round_ends_once_and_rightly(quorum, more, deadline, wanted, happened):
    policy = Policy(quorum, more, None if deadline is None else timedelta(seconds=deadline))
    asked = policy.ask(wanted, 100)
    state, now, answers = policy.open(asked, wanted, 50.0), 50.0, {"arrived": 0, "failed": 0, "tick": 0}
    for event, pause in happened:
        now += pause
        before = state
        state = policy.on(state, event, now)
        if before.effect != "wait":
            assert state == before  # what was decided stays
            continue
        answers[event] += 1
        arrived, heard = answers["arrived"], answers["arrived"] + answers["failed"]
        late = deadline is not None and now - 50.0 > deadline
        enough = arrived >= 1 and arrived >= Fraction(round(quorum * 100), 100) * wanted
        assert (state.arrived, state.failed) == (arrived, answers["failed"])
        if arrived >= wanted:
            assert state.effect == "commit"
        elif late or heard >= asked:
            assert state.effect == ("commit" if enough else "discard")
            assert bool(state.reason) == (state.effect == "discard")
        else:
            assert state.effect == "wait"


@given(hundredths, st.integers(1, 500))
@example(0.55, 100)
@example(0.07, 100)
def test_the_quorum_is_the_least_number_that_is_the_share(quorum, wanted):
    """In whole numbers: 55 of 100 are 0.55 of them, whatever 0.55 * 100 is in floats."""
    policy = Policy(quorum=quorum)
    least = max(1, math.ceil(Fraction(round(quorum * 100), 100) * wanted))
    for arrived in {least - 1, least} - {0}:
        state = policy.open(wanted, wanted, 0)
        for _ in range(arrived):
            state = policy.on(state, "arrived", 1)
        for _ in range(wanted - arrived):
            state = policy.on(state, "failed", 1)
        assert state.effect == ("commit" if arrived >= least else "discard")


@given(hundredths, st.integers(1, 500), st.integers(0, 200))
@example(0.1, 100, 100)
def test_over_selection_asks_so_many_more(more, wanted, others):
    population = wanted + others
    expected = min(population, math.ceil(wanted * (1 + Fraction(round(more * 100), 100))))
    assert Policy(over_select=more).ask(wanted, population) == expected


def test_a_round_of_nobody_is_void():
    """Poisson cohorts may be empty: nothing is committed then."""
    policy = Policy()
    state = policy.on(policy.open(0, 0, 0.0), "tick", 0.0)
    assert state.effect == "discard"


def test_a_round_in_which_all_failed_is_void_and_says_so():
    policy = Policy()
    state = policy.open(2, 2, 0.0)
    for _ in range(2):
        state = policy.on(state, "failed", 1.0)
    assert state.effect == "discard"
    assert "0 of 2" in state.reason


def test_a_late_round_commits_with_its_quorum():
    policy = Policy(quorum=0.5, deadline=timedelta(seconds=10))
    state = policy.on(policy.on(policy.open(4, 4, 0.0), "arrived", 1.0), "arrived", 2.0)
    assert policy.on(state, "tick", 10.0).effect == "wait"
    assert policy.on(state, "tick", 10.1).effect == "commit"
    one = policy.on(policy.open(4, 4, 0.0), "arrived", 1.0)
    assert policy.on(one, "tick", 11.0).effect == "discard"
    assert "deadline" in policy.on(one, "tick", 11.0).reason


def test_on_is_pure():
    policy = Policy(quorum=0.5)
    state = policy.open(4, 4, 0.0)
    policy.on(state, "arrived", 1.0)
    assert state == policy.open(4, 4, 0.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"quorum": -0.1}, "quorum=-0.1"),
        ({"quorum": 1.1}, "quorum=1.1"),
        ({"over_select": -1}, "over_select=-1"),
        ({"retries": -1}, "retries=-1"),
        ({"retries": 1.5}, "retries=1.5"),
        ({"deadline": timedelta(0)}, "deadline"),
        ({"deadline": 30}, "deadline"),
        ({"gone": 30}, "gone=30"),
        ({"gone": timedelta(0)}, "gone"),
        ({"missed": "hope"}, "missed='hope'"),
        ({"missed": "wait"}, "give quorum"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    with pytest.raises(PlanError, match=says):
        Policy(**arguments)


def test_config_is_plain():
    assert Policy(deadline=timedelta(minutes=1)).config() == {
        "name": "policy", "quorum": 0.0, "over_select": 0.0, "deadline": 60.0, "retries": 3,
    }  # fmt: skip


def test_what_came_later_is_in_the_config_only_where_it_is_used():
    """So that a run that was stored before there was such an option has the same digest."""
    config = Policy(quorum=0.5, missed="wait", gone=timedelta(minutes=2)).config()
    assert (config["missed"], config["gone"]) == ("wait", 120.0)
    assert {"missed", "gone"}.isdisjoint(Policy(quorum=0.5).config())


@given(st.integers(1, 9), st.integers(1, 10), st.lists(st.sampled_from(["arrived", "failed", "tick"]), max_size=30))
def test_a_round_that_waits_for_its_quorum_ends_with_it_or_when_all_are_heard(quorum, asked, happened):
    policy = Policy(quorum / 10, deadline=timedelta(seconds=1), missed="wait")
    least, state, now = policy.least(asked), policy.open(asked, asked, 0.0), 1.0
    for event in happened:
        now += 1.0  # all of it after the deadline
        if state.effect != "wait":
            break
        state = policy.on(state, event, now)
        heard = state.arrived + state.failed
        if state.arrived >= least:
            assert state.effect == "commit"
        elif heard >= asked:
            assert state.effect == "discard"
        else:
            assert state.effect == "wait"
