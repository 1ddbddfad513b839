"""Learning rates by round: ``lr=0.1`` or ``lr=Cosine(0.1, rounds=100)``. Rounds count from 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from insitu.core import checks
from insitu.core.part import Part


class Schedule(Part, ABC):
    """A learning rate that is a function of the round."""

    @classmethod
    def part_name(cls) -> str:
        return cls.__name__.lower()

    @abstractmethod
    def at(self, round: int) -> float:
        """The learning rate of this round (1, 2, …)."""


@dataclass(frozen=True)
class Exponential(Schedule):
    """lr · decay^(round−1)."""

    lr: float
    decay: float = 0.99

    def __post_init__(self) -> None:
        checks.positive(lr=self.lr)
        checks.positive(decay=self.decay)

    def at(self, round: int) -> float:
        return self.lr * self.decay ** (round - 1)


@dataclass(frozen=True)
class Step(Schedule):
    """lr, multiplied by ``factor`` after every ``every`` rounds."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        checks.positive(lr=self.lr)
        checks.count(every=self.every)
        checks.positive(factor=self.factor)

    def at(self, round: int) -> float:
        return self.lr * self.factor ** ((round - 1) // self.every)


@dataclass(frozen=True)
class Cosine(Schedule):
    """From lr along half a cosine to ``least``, reached after round ``rounds``, after a linear warm-up.

    The last of the rounds still has a rate above zero: it would train nobody otherwise.
    """

    lr: float
    rounds: int
    least: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        checks.positive(lr=self.lr)
        checks.count(rounds=self.rounds)
        checks.not_negative(least=self.least)
        checks.not_negative(warmup=self.warmup)

    def at(self, round: int) -> float:
        if round <= self.warmup:
            return self.lr * round / self.warmup
        done = (round - 1 - self.warmup) / max(1, self.rounds - self.warmup)
        return self.least + (self.lr - self.least) * (1 + math.cos(math.pi * min(1.0, done))) / 2


SCHEDULES: dict[str, type[Schedule]] = {cls.part_name(): cls for cls in (Exponential, Step, Cosine)}


def rate(lr: float | Schedule, round: int) -> float:
    """The learning rate of a round."""
    return lr.at(round) if isinstance(lr, Schedule) else float(lr)


def check(lr: float | Schedule) -> None:
    """A schedule has checked itself; a number must be above zero."""
    if not isinstance(lr, Schedule):
        checks.positive(lr=lr)
