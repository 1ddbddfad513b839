"""What the rounds of a run take, one by one, as long as it takes to know what a usual one does."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from insitu.bench.processes import PeakMemory, cpu_seconds, pss_bytes, tree_of
from insitu.core import events
from insitu.core.errors import EngineError
from insitu.core.protocols import Engine, Session, Setting
from insitu.inputs import chosen_engine
from insitu.rounds.plan import Plan

LONG_ENOUGH = 1.0
"""Seconds of rounds after the first: so much is measured, or two rounds in all where they take longer."""
MOST_ROUNDS = 20
PATIENCE = 60.0
"""Seconds that worker processes which have been started may take until they are at work."""
SAMPLE_EVERY = 0.1
"""Seconds between looks at the memory of the first round, and of the first with worker processes."""


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.seconds * factor, self.cpu_seconds * factor)

    def at_least_nothing(self) -> Cost:
        """Without what is negative, which is noise."""
        return Cost(max(0.0, self.seconds), max(0.0, self.cpu_seconds))


class Enough(BaseException):
    """Ends the measurement. No Exception, since a run leaves out observers that raise one."""


class Seen(Engine):
    """The engine of the run, with its session at hand: what it chooses may change while the run goes on."""

    def __init__(self, given: Any, population: int) -> None:
        self._given, self._population = given, population
        self._inner: Engine | None = None
        self._session: Session | None = None

    def refuses(self, plan: Plan) -> str | None:
        self._inner = chosen_engine(self._given, plan, self._population, None)
        return None

    def config(self) -> dict[str, Any]:
        assert self._inner is not None
        return self._inner.config()

    def open(self, setting: Setting) -> Session:
        assert self._inner is not None
        self._session = self._inner.open(setting)
        return self._session

    def choices(self) -> dict[str, Any]:
        """What it has chosen by now."""
        if self._inner is None or self._session is None:
            return {}
        return {"engine": self._inner.part_name(), **self._session.choices}


class Watch:
    """An observer that looks at the clocks when a round starts, is committed and was evaluated, and then ends the run.

    cycles       of each round, from its start to the next one's, without the evaluation
    settled      the last of them that is unusual: the first one, or what follows when other processes have joined in
    evaluations  of each round, None where there was none
    before, after  what lies around the rounds
    """

    def __init__(self, rounds: int, seen: Seen) -> None:
        self.cycles: list[Cost] = []
        self.settled = 0
        self.evaluations: list[Cost | None] = []
        self.asked: list[int] = []
        self.bytes_up: list[int] = []
        self.bytes_down: list[int] = []
        self.choices: dict[str, Any] = {}
        self.peak: int | None = None
        self.before = self.after = Cost()
        self._rounds, self._own, self._seen = rounds, Cost(), seen
        self._workers: Any = None
        self._joined = False
        self._processes = _processes()
        self._memory: PeakMemory | None = None
        self._sample()
        self._began = self._round = self._committed = self._now()
        self._evaluated: Cost | None = None

    @property
    def measured(self) -> int:
        """Rounds measured."""
        return len(self.cycles)

    def __call__(self, event: events.Event) -> None:
        now = self._now()
        if isinstance(event, events.RunStarted):
            self.choices = {**event.choices, **self._seen.choices()}
            self._workers = self.choices.get("workers")
        elif isinstance(event, events.RoundStarted):
            if event.round == 1 and not self.asked:
                self.before, self._round = now - self._began, now
            if event.round > self.measured + 1:
                self._ends(now)
                if self._enough():
                    self._began = now
                    raise Enough
            self.asked[event.round - 1 :] = [event.cohort]
        elif isinstance(event, events.RoundCommitted):
            self._committed = now
            self._notice_change()
            self.bytes_up.append(event.bytes_up)
            self.bytes_down.append(event.bytes_down)
            self._look()
        elif isinstance(event, events.Evaluated):
            self._evaluated = now - self._committed
        elif isinstance(event, events.RunFinished):
            self._ends(now)
            self._began = now

    def end(self) -> None:
        """The run is over."""
        self.after = self._now() - self._began
        self._stop_sampling()

    def _ends(self, now: Cost) -> None:
        cycle = now - self._round
        self.cycles.append(cycle if self._evaluated is None else cycle - self._evaluated)
        self.evaluations.append(self._evaluated)
        self._round, self._evaluated = now, None
        self._stop_sampling()
        if self._joined:
            self._joined = False
            self._sample()

    def _notice_change(self) -> None:
        """Whether this round is the first one with other workers than before: then it pays for that, once."""
        self.choices |= self._seen.choices()
        if self.choices.get("workers") != self._workers:
            self._workers, self._joined = self.choices.get("workers"), True
            # This round pays for starting them, and the next one for the looks at their memory.
            self.settled = self.measured + 1

    def _enough(self) -> bool:
        usual = self.cycles[self.settled + 1 :]
        spent = sum(cost.seconds for cost in [*usual, *filter(None, self.evaluations[self.settled + 1 :])])
        if not usual or (spent < LONG_ENOUGH and len(usual) + 1 < MOST_ROUNDS):
            return False
        return not self._others_come()

    def _others_come(self) -> bool:
        """Whether processes have been started that are not at work yet: rounds will be others when they are."""
        if self._workers != 1 or sum(cost.seconds for cost in self.cycles) > PATIENCE:
            return False
        before = _clocks()
        found = bool(_processes() - self._processes)
        self._own += _clocks() - before
        return found

    def _sample(self) -> None:
        with suppress(EngineError):  # no /proc, so no memory
            pss_bytes(os.getpid())
            self._memory = self._memory or PeakMemory(os.getpid(), SAMPLE_EVERY).__enter__()

    def _stop_sampling(self) -> None:
        if self._memory is not None:
            memory, self._memory = self._memory, None
            memory.__exit__(None, None, None)
            self.peak = max(self.peak or 0, memory.peak)

    def _look(self) -> None:
        """One look at the memory of a later round; what it takes is not the run's."""
        if self.peak is not None:
            before = _clocks()
            self.peak = max(self.peak, pss_bytes(os.getpid()))
            self._own += _clocks() - before

    def _now(self) -> Cost:
        """The time of the run so far, without what looking at it takes."""
        before = _clocks()
        now = before - self._own + Cost(0.0, _workers())
        self._own += _clocks() - before
        return now


def _processes() -> set[int]:
    """This process and its descendants; none where they cannot be seen."""
    with suppress(EngineError):
        return set(tree_of(os.getpid()))
    return set()


def _workers() -> float:
    """CPU seconds of the processes that this one has started and that are alive."""
    with suppress(EngineError):
        times = os.times()
        return max(0.0, cpu_seconds(os.getpid()) - sum(times[:4]))
    return 0.0


def _clocks() -> Cost:
    """Wall time, and CPU of this process and of its children that have ended."""
    times = os.times()
    return Cost(time.perf_counter(), time.process_time() + times.children_user + times.children_system)
