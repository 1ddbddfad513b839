"""The crowd: a run's clients as its world has made them. Who is available when, and what becomes of whom."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from insitu.core import seeds
from insitu.core.descent import Descent
from insitu.core.errors import RoundError
from insitu.core.protocols import Algorithm
from insitu.core.types import Population
from insitu.rounds.world import draws
from insitu.rounds.world.availability import Always
from insitu.rounds.world.distribution import values
from insitu.rounds.world.world import World

LONGEST_WAIT = 366 * 86400.0
BETWEEN_LOOKS = 1.0
"""Seconds after which the server looks again at the earliest: of a million clients, hundreds come and go in one."""
MOST_LOOKS = 10_000


class Fates(NamedTuple):
    """What becomes of the clients that were asked together, each in the order in which they were asked.

    seconds         from being asked to the end: the answer is there, or the client is gone
    answers         whether it ends with an answer
    down, work, up  how long the three parts of a whole answer take, one after the other
    """

    seconds: np.ndarray
    answers: np.ndarray
    down: np.ndarray
    work: np.ndarray
    up: np.ndarray

    def shares_sent(self, until: float) -> tuple[np.ndarray, np.ndarray]:
        """How much of its download and of its upload each client has done ``until`` so many seconds (0 to 1)."""
        spent = np.minimum(self.seconds, until)
        return _share(spent, self.down), _share(spent - self.down - self.work, self.up)


class Crowd:
    """All clients of a run with this seed; what a device is like is a function of (seed, place)."""

    def __init__(self, world: World, clients: Population, seed: int) -> None:
        self.world, self.clients, self.seed = world, clients, seed

    def available(self, places: np.ndarray, now: float) -> np.ndarray:
        """Which of these clients are available now [n], true or false."""
        return np.asarray(self._spells(places, now)[0] <= now)

    def next_available(self, places: np.ndarray, now: float) -> float:
        """The first moment from now on at which one of these clients is available; infinite where there is none."""
        return max(now, float(self._spells(places, now)[0].min())) if len(places) else np.inf

    def opening(self, least: int, now: float) -> tuple[float, np.ndarray | None]:
        """The first moment from now on at which ``least`` clients are available, and all places that are then, sorted.

        None stands for all clients: then nothing of the population's size is made. Raises RoundError where the moment
        does not come within a year.
        """
        population = len(self.clients)
        if isinstance(self.world.available, Always):
            return now, None
        moment, most = now, 0
        for _ in range(MOST_LOOKS):
            begin, _ = self._spells(None, moment)
            here = begin <= moment
            count = int(np.count_nonzero(here))
            if count >= least:
                return moment, None if count == population else np.flatnonzero(here)
            most = max(most, count)
            # Whoever is there at the moment sought is there now or begins before it: so this is never too late.
            first = float(np.partition(np.where(here, moment, begin), least - 1)[least - 1])
            moment = max(first, moment + BETWEEN_LOOKS)
            if moment - now > LONGEST_WAIT:
                break
        raise RoundError(
            f"a round needs {least} clients that are available at once, and from simulated second {now:.0f} on there"
            f" were {most} of {population} at most, however long it waited: ask fewer of them, or make them available"
            " for longer"
        )

    def fates(
        self, draw: int, places: np.ndarray, examples: np.ndarray, down: float, up: float, now: float
    ) -> Fates:  # fmt: skip
        """What becomes of clients that are asked now.

        draw      the seed of what differs from round to round: jitter and dropping out
        places    [n] of clients that are available now
        examples  [n] that each goes through (:func:`examples_of`)
        down, up  bytes of the message and of an update
        """
        world = self.world
        parts = [
            amount / values(given, self.seed, name, places)
            for name, given, amount in (
                ("down", world.down, down), ("speed", world.speed, examples), ("up", world.up, up),
            )
        ]  # fmt: skip
        if world.jitter:
            factor = np.exp(world.jitter * draws.normal(seeds.seed(draw, 0, "", "jitter"), places))
            parts = [part * factor for part in parts]
        whole = parts[0] + parts[1] + parts[2]
        seconds, answers = whole, np.ones(len(places), dtype=bool)
        if world.dropout:
            answers = draws.uniform(seeds.seed(draw, 0, "", "dropout"), places) >= world.dropout
            moment = draws.uniform(seeds.seed(draw, 0, "", "dropout moment"), places)
            seconds = np.where(answers, whole, whole * moment)
        left = self._spells(places, now)[1] - now
        answers, seconds = answers & (seconds <= left), np.minimum(seconds, left)
        return Fates(seconds, answers, *parts)

    def work(self, algorithm: Algorithm, places: np.ndarray, round: int = 1) -> np.ndarray:
        """Examples that each of these clients goes through in a round [n]; zeros where that takes no time anyway."""
        if self.world.speed is None:
            return np.zeros(len(places))
        return examples_of(algorithm, sizes_of(self.clients, places), round)

    def _spells(self, places: np.ndarray | None, now: float) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self.world.available, Always):
            count = len(self.clients) if places is None else len(places)
            return np.zeros(count), np.full(count, np.inf)
        habits = self._habits if places is None else tuple(habit[places] for habit in self._habits)
        return self.world.available.spells(habits, now)

    @cached_property
    def _habits(self) -> tuple[np.ndarray, ...]:
        """Of everyone: some megabytes for a million clients, and a round then costs a tenth of making them anew."""
        return self.world.available.habits(self.seed, self.clients)


def sizes_of(clients: Population, places: np.ndarray) -> np.ndarray:
    """Examples of each client [n]; one whose size is not known is loaded for it.

    One that cannot be loaded counts none, so that its turn comes and the engine says by name what is wrong with it.
    """
    found = np.zeros(len(places))
    for i, place in enumerate(places.tolist()):
        size = clients.size_at(place)
        if size is None:
            try:
                size = len(clients.at(place).data)
            except Exception:
                size = 0
        found[i] = size
    return found


def examples_of(algorithm: Algorithm, sizes: np.ndarray, round: int = 1) -> np.ndarray:
    """Examples that clients of these sizes [n] go through in a round [n], each counted once an epoch.

    Epochs or steps for methods that descend along gradients, one pass for the others.
    """
    if not isinstance(algorithm, Descent):
        return sizes
    work = algorithm.work_in(round)
    if work.steps is None:
        return np.asarray(sizes * (work.epochs or 1))
    batch = sizes if work.batch_size is None else np.minimum(work.batch_size, sizes)
    in_epoch = np.ceil(sizes / np.maximum(batch, 1))
    epochs, rest = np.divmod(work.steps, np.maximum(in_epoch, 1))
    return np.asarray(epochs * sizes + rest * batch)


def _share(spent: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``spent / whole`` within 0 and 1; what takes no time is done as soon as it begins."""
    done = np.divide(spent, whole, out=(spent >= 0).astype(np.float64), where=whole > 0)
    return np.asarray(np.clip(done, 0.0, 1.0))
