"""Numbers by (seed, place): against the algorithm in whole numbers, and against the distributions they claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from insitu.rounds.world import draws

WORD = 2**64


def split_mix(seed: int, place: int) -> float:
    """Vigna's splitmix64.c, written in Python's whole numbers."""
    z = (seed + (place + 1) * 0x9E3779B97F4A7C15) % WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    z ^= z >> 31
    return ((z >> 12) + 0.5) / 2**52


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_it_is_splitmix64(seed, places):
    np.testing.assert_array_equal(draws.uniform(seed, np.array(places)), [split_mix(seed, p) for p in places])


def test_known_numbers():
    """The first outputs of splitmix64 for the seed 1234567, as published with Rosetta Code's task."""
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    np.testing.assert_array_equal(draws.uniform(1234567, np.arange(3)), [((n >> 12) + 0.5) / 2**52 for n in first])


def test_a_place_has_its_number_whoever_else_is_asked():
    places = np.array([7, 3, 999_999])
    for draw in (draws.uniform, draws.normal):
        np.testing.assert_array_equal(draw(5, places), draw(5, np.arange(1_000_000))[places])
        assert (draw(5, places) != draw(6, places)).all()


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_the_distributions_are_what_they_are_called(seed):
    """Kolmogorov and Smirnov; neighbours are not correlated, neither by place nor by seed."""
    places = np.arange(50_000)
    uniform, normal = draws.uniform(seed, places), draws.normal(seed, places)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(uniform[1:], uniform[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(uniform, draws.uniform(seed + 1, places))[0, 1]) < 0.02
    assert uniform.min() > 0
    assert uniform.max() < 1
