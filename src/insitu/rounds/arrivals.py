"""Buffered rounds in real time: whoever is faster answers more often, and what has arrived when is written down.

A number of clients is kept at work (:class:`~insitu.core.protocols.Asynchronous`); as soon as one has answered, the
next starts from the newest model, and every K answers make a round. Who arrives when depends on the machines, so no two
runs agree. But a client's answer follows from its seeds, its memory and the version it started from, and a round's
answers are folded in the order of the population: which clients are in which round, from which versions, says all.
That record is an event of each round, and given again (``insitu.run(…, replay=…)``) it gives the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from insitu.core import seeds
from insitu.core.errors import PlanError, RoundError
from insitu.core.protocols import Asynchronous, Session
from insitu.core.types import Answer, ByClient, Failure, Population, Task
from insitu.rounds.buffered import Pace, check_size
from insitu.rounds.plan import Plan

Record = Mapping[int, Sequence[tuple[int, int]]]
"""By round: the place of each client whose answer is in it, and the version that it started from."""
TRIES = 64


class Flight(NamedTuple):
    """A client at work, and when it started on this process's clock."""

    place: int
    version: int
    since: float


class Arrived(NamedTuple):
    """What has come in a round, in the order of arrival; ``rows`` are the ``Arrivals`` event's."""

    answers: list[Answer]
    failures: list[Failure]
    rows: list[list[Any]]


class Landed(NamedTuple):
    """A round's answers, in the order of the population, and its failures.

    ``rows`` are the ``Arrivals`` event's, ``pending`` what a checkpoint keeps of the clients still at work.
    """

    answers: list[Answer]
    failures: list[Failure]
    rows: list[list[Any]]
    measures: dict[str, float]
    pending: dict[str, Any]


class Traffic:
    """The clients at work of one run, from round to round.

    Someone whose answer waits in the buffer, or whose work failed, does not start again before the round is over: its
    memory would fork, and what failed for a reason would fail again at once. A failure takes no place in the buffer.
    """

    def __init__(
        self,
        plan: Plan,
        session: Session,
        clients: Population,
        run: str,
        seed: int,
        pending: Mapping[str, Any],
        record: Record | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``pending`` of a checkpoint: who was at work starts again, from the version that it had.

        Raises PlanError where the session's engine cannot work in real time, or where clients are too few.
        """
        if not isinstance(session, Asynchronous):
            raise PlanError(
                f'{type(session).__name__} cannot do rounds with clock="real": use engine="processes" or "spmd", whose'
                ' workers answer as fast as they are, "inline", or the simulated clock'
            )
        assert plan.buffered is not None
        check_size(plan.buffered.size, len(clients))
        self._plan, self._buffered, self._clients = plan, plan.buffered, clients
        self._session: Asynchronous = session
        self._run, self._seed, self._record, self._clock = run, seed, record, clock
        self._before, self._since = float(pending.get("clock", 0.0)), clock()
        self._started = int(pending.get("started", 0))
        self._messages: dict[int, Any] = {int(v): message for v, message in pending.get("messages", {}).items()}
        self._pace = Pace(self._buffered.bound, len(clients), tuple(pending.get("done", ())))
        self._flights: dict[int, Flight] = {}
        self._last_use = _last_use(record)
        if record is None:
            for sequence, place, version in pending.get("flights", ()):
                self._start(int(place), int(version), int(sequence))

    def gather(self, version: int, message: Any, round: int) -> Landed:
        """A round's answers: ``size`` of them, or fewer where nobody is at work and nobody may start any more."""
        self._messages[version] = message
        told = self._real(version) if self._record is None else self._recorded(round, self._record)
        told.answers.sort(key=lambda answer: answer.task.place)
        size = self._plan.block_size(len(told.answers))
        kept = []
        for index, answer in enumerate(told.answers):
            late = self._buffered.discount(version - answer.task.version)
            kept.append(replace(answer, late=late, task=replace(answer.task, index=index, block=index // size)))
        return Landed(kept, told.failures, told.rows, self._measures(version, kept), self._pending(round))

    # ------------------------------------------------------------ who starts, who arrives

    def _real(self, version: int) -> Arrived:
        told = Arrived([], [], [])
        over: set[int] = set()
        while len(told.answers) < self._buffered.size:
            self._fill(version, over)
            if not self._flights:
                break
            over.add(self._next(told))
        return told

    def _recorded(self, round: int, record: Record) -> Arrived:
        """The same clients with the same versions as in the round that is recorded.

        Raises RoundError where one of them fails: without it, what comes of the round would be something else.
        """
        if round not in record:
            raise PlanError(f"the record to be replayed ends before round {round}: give rounds={max(record)}")
        for place, version in record[round]:
            self._start(place, version, self._started)
        told = Arrived([], [], [])
        versions = dict(record[round])
        while self._flights:
            place = self._next(told)
            if told.failures:
                failed = told.failures[0]
                raise RoundError(
                    f"round {round} cannot be replayed: client {failed.client!r} (place {place}, from version"
                    f" {versions[place]}) answered in the run that is replayed, and now failed ({failed.error}): give"
                    f" it what it had then\n{failed.trace}".rstrip()
                )
        return told

    def _next(self, told: Arrived) -> int:
        """Waits for the next to arrive, and adds what it tells; its place. Whoever fails has had its turn as well: with
        a bound the others must not wait for it for ever."""
        item = self._session.arrived()
        flight = self._flights.pop(item.index if isinstance(item, Failure) else item.task.index)
        self._pace.did(flight.place)
        if isinstance(item, Failure):
            told.failures.append(item)
        else:
            told.answers.append(item)
            seconds = self._clock() - flight.since
            told.rows.append([item.task.client, flight.place, flight.version, seconds])
        return flight.place

    def _fill(self, version: int, over: set[int]) -> None:
        """Takes every seat that is free, as long as there is somebody who may."""
        population = len(self._clients)
        wanted = min(self._buffered.concurrency or self._session.seats, population)
        barred = {flight.place for flight in self._flights.values()} | over | self._pace.ahead()
        while len(self._flights) < wanted and len(barred) < population:
            place = self._free(barred)
            self._start(place, version, self._started)
            barred.add(place)

    def _free(self, barred: set[int]) -> int:
        """A client that may start, drawn uniformly."""
        generator = seeds.generator(self._seed, self._started, "", "next client")
        population = len(self._clients)
        if len(barred) <= population // 2:
            for place in generator.integers(population, size=TRIES).tolist():
                if place not in barred:
                    return int(place)
        free = np.ones(population, dtype=bool)
        free[list(barred)] = False
        rest = np.flatnonzero(free)
        return int(rest[generator.integers(len(rest))])

    def _start(self, place: int, version: int, sequence: int) -> None:
        client, message = self._clients.id_at(place), self._messages[version]
        told = message.for_client(client) if isinstance(message, ByClient) else message
        task = Task(self._run, version + 1, version, "train", client, told, self._seed, sequence, place, sequence)
        self._started = max(self._started, sequence + 1)
        self._flights[sequence] = Flight(place, version, self._clock())
        self._session.start(task)

    # ------------------------------------------------------------ what is told and kept

    def _measures(self, version: int, answers: Sequence[Answer]) -> dict[str, float]:
        ages = [version - answer.task.version for answer in answers]
        return {"clock": self._now(), "staleness": sum(ages) / max(1, len(ages)), **self._pace.measures()}

    def _now(self) -> float:
        return self._before + self._clock() - self._since

    def _pending(self, round: int) -> dict[str, Any]:
        """As a tree. Messages that nobody needs any more are let go of."""
        flights = [[n, flight.place, flight.version] for n, flight in sorted(self._flights.items())]
        needed = {version for _, _, version in flights} | {v for v, last in self._last_use.items() if last > round}
        self._messages = {v: message for v, message in self._messages.items() if v in needed}
        return {
            "clock": self._now(),
            "started": self._started,
            "flights": flights,
            "messages": {str(v): message for v, message in self._messages.items()},
            "done": list(self._pace.tasks()),
        }


def _last_use(record: Record | None) -> dict[int, int]:
    """Version → the last round in which somebody arrives who started from it."""
    found: dict[int, int] = {}
    for round, rows in (record or {}).items():
        for _, version in rows:
            found[version] = max(found.get(version, 0), round)
    return found
