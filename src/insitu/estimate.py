"""estimate(): what a run will take, before it is run, from its first rounds."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from insitu.bench.processes import PeakMemory, cpu_seconds, pss_bytes
from insitu.core import checks, events
from insitu.core.errors import EngineError
from insitu.core.protocols import Engine
from insitu.core.types import Population
from insitu.rounds.cohort import Everyone, Uniform, draw
from insitu.rounds.plan import Plan
from insitu.run import run

LONG_ENOUGH = 1.0
"""Seconds of rounds after the first: so much is measured, or two rounds in all where they take longer."""
MOST_ROUNDS = 20
LOOKED_AT = 20_000
"""Clients whose sizes are looked at to tell how the measured cohorts compare with the others."""
SAMPLE_EVERY = 0.1
"""Seconds between looks at the memory of the first round."""


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


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take: ``start`` + rounds · ``round`` + evaluations · ``evaluation``.

    start        everything that happens once, the end included: what the first round takes more than others, too
    round        one round of clients of average size, its record in the store included
    evaluation   one evaluation, of which there will be ``evaluations``
    peak_memory  bytes: proportional set size of this process and its workers (Linux; elsewhere None). Memory of a GPU
                 is not in it
    bytes_up     of the arrays that clients send, in all rounds together; ``bytes_down`` of those sent to them
    measured     rounds that this is inferred from
    choices      the engine and what it chose
    """

    rounds: int
    start: Cost
    round: Cost
    evaluation: Cost
    evaluations: int
    peak_memory: int | None
    bytes_up: int
    bytes_down: int
    measured: int
    choices: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> Cost:
        """All of it."""
        return self.start + self.round * self.rounds + self.evaluation * self.evaluations

    @property
    def seconds(self) -> float:
        """Wall time of the whole run."""
        return self.total.seconds

    @property
    def cpu_seconds(self) -> float:
        """CPU of the whole run, all processes together."""
        return self.total.cpu_seconds

    def plain(self) -> dict[str, Any]:
        """All figures as JSON-ready data."""
        costs = {name: vars(getattr(self, name)) for name in ("start", "round", "evaluation")}
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, **vars(self), **costs}


def estimate(
    plan: Plan,
    clients: Population,
    *,
    rounds: int,
    engine: str | Engine | None = None,
    seed: int = 0,
    evaluate: Any = None,
    evaluate_every: int | None = None,
    stored: bool = True,
    **more: Any,
) -> Estimate:
    """Predicts what ``insitu.run`` with the same arguments will take, by running its first rounds.

    Two rounds are run, or more where they are quick, with the engine and the choices of the whole run. The first one
    pays for what happens once. ``stored``: whether the run will keep a record; it is then written to a temporary file
    meanwhile, and nothing is left behind. ``more``: further arguments of ``insitu.run`` that say how it works.

    Raises what ``run`` raises.
    """
    checks.count(rounds=rounds)
    every = plan.evaluate_every if evaluate_every is None else evaluate_every
    watch = _Watch(rounds)
    with tempfile.TemporaryDirectory(prefix="insitu-estimate-") as folder, suppress(_Enough):
        run(
            plan, clients, rounds=rounds, engine=engine, seed=seed, evaluate=evaluate,
            evaluate_every=1 if every else 0, store=Path(folder) / "insitu.db" if stored else None, observers=[watch],
            **more,
        )  # fmt: skip
    watch.end()
    plan = plan.resolve(clients.schema())
    scale = _usual_examples(plan, clients, seed, rounds, watch.measured)
    first, later = watch.cycles[0], watch.cycles[1:]
    one = _mean(later) * scale if later else first
    measuring = [cost for cost in watch.evaluations if cost is not None]
    later_measuring = _mean(measuring[1:]) if measuring[1:] else _mean(measuring)
    once = watch.before + watch.after + (first - one).at_least_nothing()
    once += (measuring[0] - later_measuring).at_least_nothing() if measuring else Cost()
    asked = _asked(plan, clients, seed, rounds, watch.asked)
    return Estimate(
        rounds, once, one, later_measuring, -(-rounds // every) if every else 0, watch.peak,
        _sent(watch.bytes_up, watch.asked, asked), _sent(watch.bytes_down, watch.asked, asked),
        watch.measured, watch.choices,
    )  # fmt: skip


class _Enough(BaseException):
    """Ends the measurement. No Exception, since a run leaves out observers that raise one."""


class _Watch:
    """An observer that looks at the clocks when a round starts, is committed and was evaluated, and then ends the run.

    cycles       of each round, from its start to the next one's, without the evaluation
    evaluations  of each round, None where there was none
    before, after  what lies around the rounds
    """

    def __init__(self, rounds: int) -> None:
        self.cycles: list[Cost] = []
        self.evaluations: list[Cost | None] = []
        self.asked: list[int] = []
        self.bytes_up: list[int] = []
        self.bytes_down: list[int] = []
        self.choices: dict[str, Any] = {}
        self.peak: int | None = None
        self.before = self.after = Cost()
        self._rounds, self._own = rounds, Cost()
        self._memory: PeakMemory | None = None
        with suppress(EngineError):  # no /proc, so no memory
            pss_bytes(os.getpid())
            self._memory = PeakMemory(os.getpid(), SAMPLE_EVERY)
            self._memory.__enter__()
        self._began = self._round = self._committed = self._now()
        self._evaluated: Cost | None = None

    @property
    def measured(self) -> int:
        """Rounds measured."""
        return len(self.cycles)

    def __call__(self, event: events.Event) -> None:
        now = self._now()
        if isinstance(event, events.RunStarted):
            self.choices = dict(event.choices)
        elif isinstance(event, events.RoundStarted):
            if event.round == 1 and not self.asked:
                self.before, self._round = now - self._began, now
            if event.round > self.measured + 1:
                self._ends(now)
                if self._enough():
                    self._began = now
                    raise _Enough
            self.asked[event.round - 1 :] = [event.cohort]
        elif isinstance(event, events.RoundCommitted):
            self._committed = now
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

    def _enough(self) -> bool:
        spent = sum(cost.seconds for cost in [*self.cycles[1:], *filter(None, self.evaluations[1:])])
        return self.measured >= 2 and (spent >= LONG_ENOUGH or self.measured >= MOST_ROUNDS)

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
        workers = 0.0
        with suppress(EngineError):
            times = os.times()
            workers = cpu_seconds(os.getpid()) - sum(times[:4])
        now = before - self._own + Cost(0.0, max(0.0, workers))
        self._own += _clocks() - before
        return now


def _clocks() -> Cost:
    """Wall time, and CPU of this process and of its children that have ended."""
    times = os.times()
    return Cost(time.perf_counter(), time.process_time() + times.children_user + times.children_system)


def _mean(costs: list[Cost]) -> Cost:
    return sum(costs, Cost()) * (1 / len(costs)) if costs else Cost()


def _sent(measured: list[int], asked: list[int], in_all: float) -> int:
    """Bytes of all rounds. The first may send something else than those after it, which send alike, by client."""
    if len(measured) == 1 or not sum(asked[1:]):
        return round(sum(measured) * in_all / max(1, sum(asked)))
    return measured[0] + round(sum(measured[1:]) * (in_all - asked[0]) / sum(asked[1:]))


def _asked(plan: Plan, clients: Population, seed: int, rounds: int, measured: list[int]) -> float:
    """Clients that all rounds together will ask: exactly, where that is a function of the seed alone."""
    if plan.world is not None or plan.buffered is not None:
        return sum(measured) / len(measured) * rounds
    if isinstance(plan.cohort, (Uniform, Everyone)):
        return measured[0] * rounds
    return sum(len(draw(plan.cohort, plan.policy, len(clients), seed, one)[0]) for one in range(1, rounds + 1))


def _usual_examples(plan: Plan, clients: Population, seed: int, rounds: int, measured: int) -> float:
    """Examples of a usual round over those of the rounds measured after the first; 1 where that cannot be known.

    Which clients take part in which round is known beforehand: the seed says so.
    """
    if plan.world is not None or plan.buffered is not None or measured < 2:
        return 1.0

    def examples(round: int) -> float:
        places, _ = draw(plan.cohort, plan.policy, len(clients), seed, round)
        sizes = [clients.size_at(int(place)) for place in places]
        return float("nan") if None in sizes else float(sum(size or 0 for size in sizes))

    seen = np.mean([examples(number) for number in range(2, measured + 1)])
    cohort = max(1, len(draw(plan.cohort, plan.policy, len(clients), seed, 1)[0]))
    some = np.unique(np.linspace(1, rounds, min(rounds, max(1, LOOKED_AT // cohort)), dtype=int))
    ratio = float(np.mean([examples(int(number)) for number in some]) / seen) if seen else 1.0
    return ratio if np.isfinite(ratio) else 1.0
