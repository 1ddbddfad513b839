"""Who takes part in a round: a function of (population, seed, round), in the cohort's order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from insitu.core import checks, seeds
from insitu.core.errors import PlanError
from insitu.core.part import Part
from insitu.core.protocols import Cohort
from insitu.rounds.policy import Policy


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


def least(cohort: Cohort) -> int:
    """How many clients there must be to draw from: the number that is asked for, or one."""
    return (isinstance(cohort, Uniform) and cohort.clients) or 1


def draw(
    cohort: Cohort, policy: Policy, population: int, seed: int, round: int, attempt: int = 0
) -> tuple[np.ndarray, int]:
    """The round's places [asked], those in addition at the end, and how many answers make it complete.

    ``attempt`` counts void rounds before it: each draws another cohort.
    """
    if attempt:
        seed = seeds.seed(seed, round, "", f"attempt {attempt}")
    places = np.asarray(cohort.sample(population, seed, round), dtype=np.int64)
    wanted = len(places)
    more = policy.ask(wanted, population) - wanted
    if more > 0:
        generator = seeds.generator(seed, round, "", "over-selection")
        rank = generator.choice(population - wanted, more, replace=False)
        places = np.concatenate([places, _others(np.sort(places), rank)])
    return places, wanted


def _others(taken: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The places of these ranks among all that are not ``taken`` (sorted), without a list of them."""
    free_before = taken - np.arange(len(taken))
    return rank + np.searchsorted(free_before, rank, side="right")
