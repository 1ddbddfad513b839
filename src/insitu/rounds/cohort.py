"""Who takes part in a round: a function of (population, seed, round), in the cohort's order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from insitu.core import checks, seeds
from insitu.core.errors import PlanError
from insitu.core.part import Part


@dataclass(frozen=True)
class Everyone(Part):
    """All clients, every round, in their order."""

    @classmethod
    def part_name(cls) -> str:
        return "everyone"

    def sample(self, population: int, seed: int, round: int) -> np.ndarray:
        """Places [population]."""
        return np.arange(population)


@dataclass(frozen=True)
class Uniform(Part):
    """``clients`` of them, or a ``fraction``, drawn uniformly without replacement."""

    clients: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.clients is None) == (self.fraction is None):
            raise PlanError(
                f"Uniform(clients={self.clients}, fraction={self.fraction}): give one of clients and fraction"
            )
        if self.clients is not None:
            checks.count(clients=self.clients)
        if self.fraction is not None and not 0 < checks.number(fraction=self.fraction) <= 1:
            raise PlanError(f"Expected 0 < fraction={self.fraction!r} <= 1")

    @classmethod
    def part_name(cls) -> str:
        return "uniform"

    def size(self, population: int) -> int:
        """How many take part."""
        if self.clients is None:
            return max(1, round(population * (self.fraction or 0)))
        if self.clients > population:
            raise PlanError(
                f"a cohort of {self.clients} clients cannot be drawn from {population}: use Uniform({population})"
                " or fewer, Uniform(fraction=…) or Everyone()"
            )
        return self.clients

    def sample(self, population: int, seed: int, round: int) -> np.ndarray:
        """Places [size], sorted."""
        generator = seeds.generator(seed, round, "", "cohort")
        return np.sort(generator.choice(population, self.size(population), replace=False))


@dataclass(frozen=True)
class Poisson(Part):
    """Each client on its own with probability ``rate``: the sampling that privacy accounting assumes.

    The cohort's size varies; a round whose cohort is empty commits nothing.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 < checks.number(rate=self.rate) <= 1:
            raise PlanError(f"Expected 0 < rate={self.rate!r} <= 1")

    @classmethod
    def part_name(cls) -> str:
        return "poisson"

    def sample(self, population: int, seed: int, round: int) -> np.ndarray:
        """Places, sorted; their number is binomial."""
        generator = seeds.generator(seed, round, "", "cohort")
        return np.sort(generator.choice(population, generator.binomial(population, self.rate), replace=False))
