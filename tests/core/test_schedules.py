"""Learning rates by round against their formulas written out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insitu.core.errors import PlanError
from insitu.core.schedules import SCHEDULES, Cosine, Exponential, Step, check, rate


def test_exponential():
    assert [Exponential(0.1, 0.5).at(r) for r in (1, 2, 3)] == pytest.approx([0.1, 0.05, 0.025])


def test_step():
    schedule = Step(1.0, every=2, factor=0.1)
    assert [schedule.at(r) for r in range(1, 7)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_goes_from_lr_to_least():
    schedule = Cosine(0.8, rounds=5, least=0.2)
    found = [schedule.at(r) for r in range(1, 6)]
    assert found[0] == pytest.approx(0.8)
    assert found == sorted(found, reverse=True)
    assert all(0.2 <= lr <= 0.8 for lr in found)


def test_cosine_warms_up_linearly():
    schedule = Cosine(0.8, rounds=12, warmup=4)
    assert [schedule.at(r) for r in (1, 2, 3, 4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule.at(5) <= 0.8


@given(st.floats(1e-6, 10), st.integers(1, 200), st.integers(0, 20))
def test_a_round_that_is_planned_has_a_learning_rate_above_zero(lr, rounds, warmup):
    """A round with lr=0 trains nobody, and methods that divide by lr (SCAFFOLD) tell NaN."""
    schedule = Cosine(lr, rounds=rounds, warmup=warmup)
    assert all(schedule.at(r) > 0 for r in range(1, rounds + 1))


@pytest.mark.parametrize("schedule", [Exponential(0.1), Step(0.1, 3), Cosine(0.1, 10, warmup=3)])
def test_any_round_has_a_finite_rate(schedule):
    assert all(math.isfinite(schedule.at(r)) and schedule.at(r) >= 0 for r in (1, 2, 10, 11, 1000))


def test_every_schedule_has_its_name():
    assert {"exponential": Exponential, "step": Step, "cosine": Cosine} == SCHEDULES
    assert Cosine(0.1, 10).config() == {"name": "cosine", "lr": 0.1, "rounds": 10, "least": 0.0, "warmup": 0}


def test_a_number_is_a_constant_schedule():
    assert rate(0.3, 1) == rate(0.3, 50) == 0.3
    assert rate(Step(1.0, 1), 3) == pytest.approx(0.01)
    check(Cosine(0.1, 3))
    with pytest.raises(PlanError, match="lr=0"):
        check(0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Exponential(0), "lr=0"),
        (lambda: Exponential(0.1, 0), "decay=0"),
        (lambda: Step(0.1, 0), "every=0"),
        (lambda: Step(0.1, 2, -1), "factor=-1"),
        (lambda: Cosine(0.1, 0), "rounds=0"),
        (lambda: Cosine(0.1, 10, -0.1), "least=-0.1"),
        (lambda: Cosine(0.1, 10, warmup=-1), "warmup=-1"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(PlanError, match=says):
        make()
