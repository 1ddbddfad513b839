"""When clients can be reached, as a function of simulated time.

All times are seconds of the simulated clock, which is 0 at the start of the run: midnight, for what has days.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import numpy as np

from insitu.core import checks, seeds
from insitu.core.errors import PlanError
from insitu.core.part import Part, plain
from insitu.core.types import Population
from insitu.rounds.world import draws

DAY = timedelta(days=1)


class Availability(Part, ABC):
    """The spells in which each client is available."""

    @abstractmethod
    def habits(self, seed: int, clients: Population) -> tuple[np.ndarray, ...]:
        """What every client has all through a run, by place: arrays [population] that ``spells`` reads."""

    @abstractmethod
    def spells(self, habits: tuple[np.ndarray, ...], now: float) -> tuple[np.ndarray, np.ndarray]:
        """``(begin [n], end [n])`` of the spell that lasts at ``now``, or else of the next.

        ``habits`` are those of n clients. A client is available where begin ≤ now < end; both are infinite for a client
        that never is again.
        """

    def config(self) -> dict[str, Any]:
        """Durations are in seconds."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        seconds = {k: v.total_seconds() if isinstance(v, timedelta) else plain(v) for k, v in given.items()}
        return {"name": self.part_name(), **seconds}


@dataclass(frozen=True)
class Always(Availability):
    """Every client, at any time."""

    @classmethod
    def part_name(cls) -> str:
        return "always"

    def habits(self, seed: int, clients: Population) -> tuple[np.ndarray, ...]:
        return (np.zeros(len(clients)),)

    def spells(self, habits: tuple[np.ndarray, ...], now: float) -> tuple[np.ndarray, np.ndarray]:
        return habits[0], habits[0] + np.inf


class Cycle(Availability):
    """Spells that come back: a client is on for ``length`` seconds in every ``period``."""

    @abstractmethod
    def cycle(self, habits: tuple[np.ndarray, ...]) -> tuple[np.ndarray, Any, Any]:
        """``(start [n], length, period)`` in seconds: the beginning of one spell, how long, how often."""

    def spells(self, habits: tuple[np.ndarray, ...], now: float) -> tuple[np.ndarray, np.ndarray]:
        start, length, period = self.cycle(habits)
        begin = start + np.floor((now - start) / period) * period
        begin = np.where(now < begin + length, begin, begin + period)
        # Where a spell lasts until the next one begins, it does not end.
        return begin, np.where(length < period, begin + length, np.inf)


@dataclass(frozen=True)
class Daily(Cycle):
    """Once a day, around the same hour: phones that are charged at night, offices that are open by day.

    start   when a client's spell begins, after midnight; a client of another time zone or habit begins earlier or later
    length  how long it lasts
    spread  standard deviation of the beginning over clients; a client has the same every day
    """

    start: timedelta = timedelta(hours=22)
    length: timedelta = timedelta(hours=8)
    spread: timedelta = timedelta(hours=2)

    def __post_init__(self) -> None:
        for name in ("start", "length", "spread"):
            _duration(name, getattr(self, name), zero=name != "length")
        if self.length > DAY:
            raise PlanError(f"Expected length={self.length} to be a day at most")

    @classmethod
    def part_name(cls) -> str:
        return "daily"

    def habits(self, seed: int, clients: Population) -> tuple[np.ndarray, ...]:
        z = draws.normal(seeds.seed(seed, 0, "", "hour of the day"), np.arange(len(clients)))
        return (self.start.total_seconds() + self.spread.total_seconds() * z,)

    def cycle(self, habits: tuple[np.ndarray, ...]) -> tuple[np.ndarray, Any, Any]:
        return habits[0], self.length.total_seconds(), DAY.total_seconds()


@dataclass(frozen=True)
class Spells(Cycle):
    """On and off in turn: a client is available for ``on``, then away for ``off``, from a random moment.

    on, off   median lengths; at any moment a share of about on / (on + off) of the clients is available
    sigma     standard deviation of the logarithm of both lengths over clients; a client keeps its own all through a run
    """

    on: timedelta
    off: timedelta
    sigma: float = 0.5

    def __post_init__(self) -> None:
        _duration("on", self.on)
        _duration("off", self.off, zero=True)
        checks.not_negative(sigma=self.sigma)

    @classmethod
    def part_name(cls) -> str:
        return "spells"

    def habits(self, seed: int, clients: Population) -> tuple[np.ndarray, ...]:
        places = np.arange(len(clients))
        on, off = (
            length.total_seconds() * np.exp(self.sigma * draws.normal(seeds.seed(seed, 0, "", f"spell {name}"), places))
            for name, length in (("on", self.on), ("off", self.off))
        )
        phase = draws.uniform(seeds.seed(seed, 0, "", "spell phase"), places)
        return -phase * (on + off), on, on + off

    def cycle(self, habits: tuple[np.ndarray, ...]) -> tuple[np.ndarray, Any, Any]:
        return habits[0], habits[1], habits[2]


def _duration(name: str, value: Any, zero: bool = False) -> None:
    if not isinstance(value, timedelta):
        raise PlanError(f"Expected {name}={value!r} to be a timedelta: timedelta(hours=8), say")
    (checks.not_negative if zero else checks.positive)(**{name: value.total_seconds()})
