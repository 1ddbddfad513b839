"""World: what becomes of a client that is asked, in simulated time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from insitu.core import checks, seeds
from insitu.core.descent import Descent
from insitu.core.errors import PlanError
from insitu.core.part import Part
from insitu.core.protocols import Algorithm
from insitu.core.types import Population
from insitu.rounds.world import draws
from insitu.rounds.world.availability import Always, Availability
from insitu.rounds.world.distribution import Distribution, values


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


@dataclass(frozen=True, kw_only=True)
class World(Part):
    r"""Devices, links and people's habits, simulated: with it a plan's rounds run on a simulated clock.

    .. math:: t_i = \left( \frac{\text{bytes down}}{\text{down}_i} + \frac{\text{examples}_i}{\text{speed}_i}
              + \frac{\text{bytes up}}{\text{up}_i} \right) e^{\text{jitter} \cdot z}

    speed      examples that a device trains on in a second; an example counts once an epoch
    down, up   bytes that its link takes in a second to the client, and from it (10 Mbit/s are 1.25e6)
    available  when clients can be reached (:class:`Always`, :class:`Daily`, :class:`Spells`, :class:`Trace`)
    dropout    probability that a client fails in the middle of its work, 0 to below 1
    jitter     standard deviation of the logarithm of a factor on a client's time, drawn anew each round

    ``speed``, ``down`` and ``up`` are numbers, the same for all, or distributions over clients (:class:`LogNormal`,
    :class:`Measured`); None takes no time. A client has the same device all through a run: what it has is a function
    of the run's seed and the client's place in the population. A client whose spell of availability ends before it is
    done is lost at that moment.
    """

    speed: float | Distribution | None = None
    down: float | Distribution | None = None
    up: float | Distribution | None = None
    available: Availability = field(default_factory=Always)
    dropout: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("speed", "down", "up"):
            given = getattr(self, name)
            if isinstance(given, type):
                raise PlanError(f"{name}={given.__name__} is a class, give an instance of it")
            if given is not None and not isinstance(given, Distribution):
                checks.positive(**{name: given})
        if not isinstance(self.available, Availability):
            raise PlanError(f"available={self.available!r} is not an Availability: give Always() or Daily(), say")
        if checks.probability(dropout=self.dropout) == 1:
            raise PlanError("dropout=1 leaves nobody who answers: give less")
        checks.not_negative(jitter=self.jitter)

    def fates(
        self, seed: int, draw: int, clients: Population, places: np.ndarray, examples: np.ndarray, down: float,
        up: float, now: float,
    ) -> Fates:  # fmt: skip
        """What becomes of clients that are asked at the moment ``now``.

        seed      the run's, from which devices derive
        draw      the seed of what differs from round to round: jitter and dropping out
        places    [n] of clients that are available now
        examples  [n] that each goes through (:func:`examples_of`)
        down, up  bytes of the message and of an update
        """
        with np.errstate(divide="ignore"):
            parts = [
                amount / values(given, seed, name, places)
                for name, given, amount in (
                    ("down", self.down, down), ("speed", self.speed, examples), ("up", self.up, up),
                )
            ]  # fmt: skip
        if self.jitter:
            factor = np.exp(self.jitter * draws.normal(seeds.seed(draw, 0, "", "jitter"), places))
            parts = [part * factor for part in parts]
        whole = parts[0] + parts[1] + parts[2]
        seconds, answers = whole, np.ones(len(places), dtype=bool)
        if self.dropout:
            answers = draws.uniform(seeds.seed(draw, 0, "", "dropout"), places) >= self.dropout
            moment = draws.uniform(seeds.seed(draw, 0, "", "dropout moment"), places)
            seconds = np.where(answers, whole, whole * moment)
        left = self.available.spells(seed, clients, places, now)[1] - now
        answers, seconds = answers & (seconds <= left), np.minimum(seconds, left)
        return Fates(seconds, answers, *parts)


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


def examples_of(algorithm: Algorithm, sizes: np.ndarray) -> np.ndarray:
    """Examples that clients of these sizes [n] go through in one task [n], each counted once an epoch.

    Epochs or steps for methods that descend along gradients, one pass for the others.
    """
    if not isinstance(algorithm, Descent):
        return sizes
    work = algorithm.work()
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
