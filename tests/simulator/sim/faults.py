"""What goes wrong in a simulation, and when: drawn from the seed, until a moment after which nothing does."""

from __future__ import annotations

import errno
import sqlite3
from dataclasses import dataclass
from random import Random

from sqlalchemy.exc import OperationalError

from sim.loop import Process
from sim.network import Weather


@dataclass(frozen=True)
class Chances:
    """How much goes wrong. Seconds are means of virtual time between two such things; 0 is never."""

    coordinator_dies: float = 0.0
    site_dies: float = 0.0
    parted: float = 0.0
    full: float = 0.0
    clock: float = 0.0
    pause: float = 0.0
    at_failpoint: float = 0.0
    """The share of hit failpoints at which the process dies."""
    error_at: float = 0.0
    """The share of hit failpoints that say that the disk is full or broken."""
    stranger: float = 0.0
    revoked: bool = False
    weather: Weather = Weather()
    until: float = 1500.0
    """Virtual seconds, after which everything works."""

    @classmethod
    def of(cls, seed: int) -> Chances:
        """The seed's own: some seeds are rough in all ways, most in a few, and every tenth in none."""
        random = Random(f"{seed} chances")
        if random.random() < 0.05:
            return cls(until=0.0)

        def some(mean: float, share: float = 0.5) -> float:
            return mean * random.uniform(0.5, 2.0) if random.random() < share else 0.0

        weather = Weather(
            lost=random.choice((0.0, 0.02, 0.1)), lost_reply=random.choice((0.0, 0.02, 0.1)),
            doubled=random.choice((0.0, 0.05, 0.3)), cut=random.choice((0.0, 0.05, 0.3)),
            slow=random.choice((0.0, 0.01, 0.1)), latency=random.choice((0.01, 0.05, 0.5)),
        )  # fmt: skip
        return cls(
            coordinator_dies=some(150, 0.7), site_dies=some(120, 0.7), parted=some(150), full=some(250, 0.4),
            clock=some(150, 0.4), pause=some(200, 0.4), at_failpoint=random.choice((0.0, 0.0, 0.005, 0.02)),
            error_at=random.choice((0.0, 0.0, 0.0, 0.005)), stranger=some(60, 0.3), revoked=random.random() < 0.1,
            weather=weather, until=random.uniform(200, 1200),
        )  # fmt: skip


DISK = ("blob.fsync.before", "ledger.commit.before", "store.commit.before", "site.outbox.before", "site.memory.before")
"""Failpoints where a disk may say that it is full or broken."""


class Strikes:
    """What happens at failpoints: nothing, death, or an error of the disk."""

    def __init__(self, random: Random, chances: Chances, current: object) -> None:
        self._random, self._chances = random, chances
        self._current = current
        self.calm = False
        self.hits: dict[str, int] = {}
        self.on_death = lambda process, name: None

    def __call__(self, name: str) -> None:
        process: Process | None = self._current.get()  # type: ignore[attr-defined]
        if process is None:
            return
        process.check()
        self.hits[name] = self.hits.get(name, 0) + 1
        if self.calm:
            return
        draw = self._random.random()
        if draw < self._chances.at_failpoint:
            self.on_death(process, name)
            process.die()
        elif name in DISK and 1 - draw < self._chances.error_at * 4:
            full = self._random.random() < 0.5
            if "commit" in name:
                raise _of_sqlite(full)
            raise OSError(errno.ENOSPC if full else errno.EIO, "the simulation's disk")


def _of_sqlite(full: bool) -> OperationalError:
    """What SQLAlchemy raises where SQLite's disk is full or broken."""
    error = sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR  # type: ignore[attr-defined]
    return OperationalError("COMMIT", None, error)
