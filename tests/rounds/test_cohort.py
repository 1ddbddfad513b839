"""Who takes part: functions of population, seed and round, with the distribution that they claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insitu.core.errors import PlanError
from insitu.rounds.cohort import Everyone, Poisson, Uniform

COHORTS = [Everyone(), Uniform(5), Uniform(fraction=0.3), Poisson(0.3)]
every = pytest.mark.parametrize("cohort", COHORTS, ids=lambda c: str(c))


@every
@given(seed=st.integers(0, 2**62), round=st.integers(1, 10**6), population=st.integers(5, 300))
def test_places_are_distinct_sorted_and_there(cohort, seed, round, population):
    places = cohort.sample(population, seed, round)
    assert (np.diff(places) > 0).all()
    assert len(places) == 0 or (places[0] >= 0 and places[-1] < population)
    np.testing.assert_array_equal(places, cohort.sample(population, seed, round))


@pytest.mark.parametrize("cohort", COHORTS[1:], ids=str)
def test_rounds_and_seeds_draw_anew(cohort):
    draws = {tuple(cohort.sample(200, seed, round)) for seed in range(5) for round in range(1, 6)}
    assert len(draws) == 25


def test_everyone_is_everyone():
    assert Everyone().sample(7, 1, 2).tolist() == list(range(7))


@given(st.integers(1, 400), st.floats(0.001, 1))
def test_a_fraction_is_that_share_and_at_least_one(population, fraction):
    size = len(Uniform(fraction=fraction).sample(population, 0, 1))
    assert 1 <= size <= population
    assert abs(size - population * fraction) <= max(0.5, 1 - population * fraction) + 1e-9


def test_uniform_draws_each_client_equally_often():
    hits = np.zeros(20)
    for round in range(3000):
        hits[Uniform(5).sample(20, 0, round)] += 1
    assert np.abs(hits / 3000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 3000)


def test_poisson_draws_clients_independently():
    """Sizes vary as a binomial's, and two clients come together as often as chance says."""
    member = np.zeros((4000, 20), dtype=bool)
    for round in range(4000):
        member[round, Poisson(0.3).sample(20, 0, round)] = True
    sizes = member.sum(axis=1)
    assert abs(sizes.mean() - 6) < 5 * np.sqrt(20 * 0.3 * 0.7 / 4000)
    assert abs(sizes.var() - 20 * 0.3 * 0.7) < 0.5
    assert np.abs(member.mean(axis=0) - 0.3).max() < 5 * np.sqrt(0.21 / 4000)
    together = (member[:, :1] & member[:, 1:]).mean(axis=0)
    assert np.abs(together - 0.09).max() < 5 * np.sqrt(0.09 * 0.91 / 4000)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Uniform(), "one of clients and fraction"),
        (lambda: Uniform(3, 0.5), "one of clients and fraction"),
        (lambda: Uniform(0), "clients=0"),
        (lambda: Uniform(2.5), "clients=2.5"),
        (lambda: Uniform(fraction=0), "fraction=0"),
        (lambda: Uniform(fraction=1.5), "fraction=1.5"),
        (lambda: Poisson(0), "rate=0"),
        (lambda: Poisson(1.5), "rate=1.5"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(PlanError, match=says):
        make()


def test_more_than_there_are_is_refused_with_the_cure():
    with pytest.raises(PlanError, match=r"cohort of 10.*from 4.*Everyone"):
        Uniform(10).sample(4, 0, 1)


def test_a_large_population_costs_no_list_of_it():
    import tracemalloc

    tracemalloc.start()
    Uniform(10).sample(50_000_000, 0, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6
