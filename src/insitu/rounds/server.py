"""The server's half: ask → engine → reduce → undo stages → tell → commit. A round counts as a whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from insitu.core import seeds, tree
from insitu.core.protocols import Session
from insitu.core.types import ByClient, Context, Failure, Folded, Kind, Population, Report, Task
from insitu.rounds.fold import Fold
from insitu.rounds.memory import Memories
from insitu.rounds.plan import Plan


@dataclass(frozen=True)
class Model:
    """What is carried from round to round: ``version`` rounds are committed."""

    version: int
    state: Any
    stages: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a round. ``model`` is None where it is void."""

    model: Model | None
    reports: list[Report]
    failures: list[Failure]
    asked: int
    bytes_down: int
    """Bytes of the arrays sent to one client."""
    reason: str = ""


@dataclass(frozen=True)
class Server:
    """Who runs rounds: the parts that stay the same from round to round."""

    run: str
    plan: Plan
    session: Session
    clients: Population
    memories: Memories
    seed: int
    clock: Callable[[], float] = time.monotonic

    def run_round(self, model: Model, round: int, attempt: int = 0) -> Outcome:
        """One round on ``model``. ``attempt`` counts void rounds before it: each draws another cohort."""
        places, wanted = draw(self.plan, len(self.clients), self.seed, round, attempt)
        message = self.plan.algorithm.ask(model.state, round)
        fold = self._gather(places, wanted, message, model.version, round)
        down = tree.nbytes(message.default if isinstance(message, ByClient) else message)
        if fold.effect != "commit":
            self.memories.discard()
            return Outcome(None, fold.reports, fold.failures, len(places), down, fold.reason)
        cohort = [self.clients.id_at(int(place)) for place in places]
        context = Context(round, len(self.clients), cohort, self.seed)
        total = self.plan.reduce.finish(fold.accumulator, context)
        stages = dict(model.stages)
        for i, stage in reversed(list(enumerate(self.plan.stages))):
            total, after = stage.decode(total, stages.get(str(i)), context)
            if after is not None:
                stages[str(i)] = after
        state = self.plan.algorithm.tell(model.state, total, round)
        self.memories.commit()
        return Outcome(Model(round, state, stages), fold.reports, fold.failures, len(places), down)

    def ask_all(self, kind: Kind, message: Any, places: Any, version: int) -> Fold:
        """One task of a kind to each of these clients, outside of training; nothing is remembered."""
        fold = Fold(self.plan)
        with closing(self._answers(places, kind, message, version, version)) as answers:
            for item in answers:
                fold.take(item)
        return fold

    def _answers(self, places: Any, kind: Kind, message: Any, version: int, round: int) -> Generator[Any, None, None]:
        size = self.plan.block_size(len(places))

        def tasks() -> Iterator[Task]:
            for index, place in enumerate(places):
                client = self.clients.id_at(int(place))
                told = message.for_client(client) if isinstance(message, ByClient) else message
                yield Task(self.run, round, version, kind, client, told, self.seed, index, int(place), index // size)

        yield from self.session.run(tasks())

    def _gather(self, places: Any, wanted: int, message: Any, version: int, round: int) -> Gathered:
        policy, fold = self.plan.policy, Fold(self.plan)
        opened = policy.open(len(places), wanted, self.clock())
        with closing(self._answers(places, "train", message, version, round)) as answers:
            for item in answers:
                fold.take(item)
                for event in _events(item):
                    opened = policy.on(opened, event, self.clock())
                if opened.effect != "wait":
                    break
        if not len(places):
            opened = policy.on(opened, "tick", self.clock())
        for report in fold.reports:
            self.memories.pend(report.client, report.memory)
        return Gathered(fold.finish(), fold.reports, fold.failures, opened.effect, opened.reason)


@dataclass(frozen=True)
class Gathered:
    """What came in, and what the policy says of it."""

    accumulator: Any
    reports: list[Report]
    failures: list[Failure]
    effect: str
    reason: str


def draw(plan: Plan, population: int, seed: int, round: int, attempt: int) -> tuple[np.ndarray, int]:
    """The round's cohort as places [asked], and how many answers make it complete."""
    if attempt:
        seed = seeds.seed(seed, round, "", f"attempt {attempt}")
    places = np.asarray(plan.cohort.sample(population, seed, round), dtype=np.int64)
    wanted = len(places)
    more = plan.policy.ask(wanted, population) - wanted
    if more > 0:
        generator = seeds.generator(seed, round, "", "over-selection")
        rest = np.setdiff1d(np.arange(population), places, assume_unique=True)
        places = np.concatenate([places, generator.choice(rest, more, replace=False)])
    return places, wanted


def _events(item: Any) -> list[Any]:
    if isinstance(item, Failure):
        return ["failed"]
    return ["arrived"] * (len(item.reports) if isinstance(item, Folded) else 1)
