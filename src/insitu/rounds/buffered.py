"""Buffered rounds: asynchronous training, K answers at a time, with staleness.

Clients are never waited for: as soon as one has answered, another starts from the newest model, and every K answers
make a new model. In simulation time is virtual: how long a client takes is a function of the seeds, so an asynchronous
run has the same answer on every engine, and resumes bit for bit. What a client computes does not depend on when it is
computed, so its work is done when its answer is due.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insitu.core import checks, seeds
from insitu.core.errors import PlanError
from insitu.core.part import Part
from insitu.core.types import Population


@dataclass(frozen=True)
class Buffered(Part):
    r"""FedBuff: K answers make a round, and an answer's change counts less the older its model is.

    .. math:: \Delta_i \leftarrow (1 + \tau_i)^{-a} \, \Delta_i

    τ is the number of rounds committed since the client got its model.

    size         K, answers in a round
    concurrency  clients at work at any time; None: twice ``size``
    staleness    a, how fast old answers lose weight; 0: not at all
    spread       standard deviation of the logarithm of clients' speeds: 0 all alike, 1 some ten times slower

    A client takes (its speed) × (a log-normal draw for each task, a tenth as wide) × (its examples, where they are
    known without loading it) units of virtual time. The history's ``clock`` is the virtual time of a commit, and
    ``staleness`` the mean τ of its answers.

    Reference: Nguyen et al., *Federated Learning with Buffered Asynchronous Aggregation*, AISTATS 2022, algorithm 1;
    the polynomial discount is section 5's with a = 0.5. Deviation: the mean is weighted by the algorithm's weights.
    """

    size: int = 10
    concurrency: int | None = None
    staleness: float = 0.5
    spread: float = 0.5

    @classmethod
    def part_name(cls) -> str:
        return "buffered"

    def __post_init__(self) -> None:
        checks.count(size=self.size)
        if self.concurrency is not None and checks.count(concurrency=self.concurrency) < self.size:
            raise PlanError(
                f"concurrency={self.concurrency} clients at work cannot fill a buffer of size={self.size} at once:"
                " use a larger concurrency or a smaller size"
            )
        checks.not_negative(staleness=self.staleness)
        checks.not_negative(spread=self.spread)

    def discount(self, age: int) -> float:
        """(1 + τ)^−a."""
        return float((1 + age) ** -self.staleness)


@dataclass(frozen=True, order=True)
class Flight:
    """A client at work: when it will answer, and which version it started from."""

    due: float
    sequence: int
    place: int
    version: int


@dataclass(frozen=True)
class Sky:
    """All clients at work: the asynchronous part of the state, a tree for checkpoints (:meth:`tree`).

    ``messages`` holds what was asked at each version that somebody still works on.
    """

    clock: float
    started: int
    flights: tuple[Flight, ...]
    messages: Mapping[int, Any]

    def tree(self) -> dict[str, Any]:
        """As a tree."""
        return {
            "clock": self.clock,
            "started": self.started,
            "flights": [[f.due, f.sequence, f.place, f.version] for f in self.flights],
            "messages": {str(version): message for version, message in self.messages.items()},
        }

    @classmethod
    def of(cls, pending: Mapping[str, Any]) -> Sky:
        """Out of a tree; an empty one is the sky before the first round."""
        if not pending:
            return cls(0.0, 0, (), {})
        flights = tuple(Flight(float(due), int(s), int(p), int(v)) for due, s, p, v in pending["flights"])
        messages = {int(version): message for version, message in pending["messages"].items()}
        return cls(float(pending["clock"]), int(pending["started"]), flights, messages)


def next_arrivals(
    buffered: Buffered, sky: Sky, version: int, message: Any, clients: Population, seed: int
) -> tuple[list[Flight], Sky, dict[int, Any]]:
    """The next K flights to end in the order of their arrival, the sky after them, and the messages by version.

    Whoever lands is replaced at once by a client that is not at work, drawn uniformly, with the newest model. A client
    whose answer waits in the buffer does not start again before the round is committed: its memory would fork.
    """
    population = len(clients)
    if buffered.size > population:
        raise PlanError(
            f"{population} clients cannot fill a buffer of size={buffered.size}: use Buffered({population})"
        )
    wanted = min(buffered.concurrency or 2 * buffered.size, population)
    heap, clock, started = list(sky.flights), sky.clock, sky.started
    heapq.heapify(heap)
    busy = {flight.place for flight in heap}
    arrived: list[Flight] = []
    while len(arrived) < buffered.size:
        while len(heap) < wanted and len(busy) < population:
            place = _free(seed, started, population, busy)
            due = clock + _duration(buffered, clients, place, seed, started)
            heapq.heappush(heap, Flight(due, started, place, version))
            busy.add(place)
            started += 1
        arrived.append(heapq.heappop(heap))
        clock = arrived[-1].due
    messages = {**sky.messages, version: message}
    still = {flight.version for flight in heap}
    after = Sky(clock, started, tuple(sorted(heap)), {v: m for v, m in messages.items() if v in still})
    return arrived, after, messages


def _free(seed: int, sequence: int, population: int, busy: set[int]) -> int:
    """A client that is not at work, drawn uniformly."""
    generator = seeds.generator(seed, sequence, "", "next client")
    if len(busy) > population // 2:
        rest = [place for place in range(population) if place not in busy]
        return rest[int(generator.integers(len(rest)))]
    while True:
        place = int(generator.integers(population))
        if place not in busy:
            return place


def _duration(buffered: Buffered, clients: Population, place: int, seed: int, sequence: int) -> float:
    speed = seeds.generator(seed, 0, clients.id_at(place), "speed").lognormal(0.0, buffered.spread)
    jitter = seeds.generator(seed, sequence, "", "duration").lognormal(0.0, buffered.spread / 10)
    return float(speed * jitter * (clients.size_at(place) or 1))
