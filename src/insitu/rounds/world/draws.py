"""Random numbers that are a function of (seed, place), for many places at once.

A generator for each of a million clients would take seconds a round; this hash is a handful of NumPy operations for all
of them together, and gives a client the same number whoever else is asked about.
"""

from __future__ import annotations

import numpy as np

_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniform(seed: int, places: np.ndarray) -> np.ndarray:
    """A number in (0, 1), both excluded, for each place [n]: element ``place`` of the SplitMix64 stream of ``seed``.

    Reference: Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014.
    """
    z = (np.asarray(places).astype(np.uint64) + np.uint64(1)) * _STEP + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    z ^= z >> np.uint64(31)
    return np.asarray(((z >> np.uint64(12)) + 0.5) * 2.0**-52)


def normal(seed: int, places: np.ndarray) -> np.ndarray:
    """A draw of the standard normal distribution for each place [n] (Box and Muller 1958)."""
    twice = 2 * np.asarray(places, dtype=np.int64)
    z = np.sqrt(-2 * np.log(uniform(seed, twice)))
    return np.asarray(z * np.cos(2 * np.pi * uniform(seed, twice + 1)))
