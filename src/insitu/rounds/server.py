"""The server's half: ask → engine → reduce → undo stages → tell → commit. A round counts as a whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from insitu.core import seeds, tree
from insitu.core.protocols import Session
from insitu.core.types import ByClient, Context, Failure, Folded, Kind, Population, Report, Task
from insitu.rounds.buffered import Buffered, Sky, next_arrivals
from insitu.rounds.fold import Fold
from insitu.rounds.memory import Memories
from insitu.rounds.plan import Plan


@dataclass(frozen=True)
class Model:
    """What is carried from round to round: ``version`` rounds are committed.

    ``stages`` are the states of the stages' server halves, ``pending`` the clients at work in asynchronous rounds.
    """

    version: int
    state: Any
    stages: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, Any] = field(default_factory=dict)


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
    measures: dict[str, float] = field(default_factory=dict)


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
    opened: Callable[[int, int], None] = lambda round, asked: None
    """Told the round and how many clients are asked, before the first of them is."""

    def run_round(self, model: Model, round: int, attempt: int = 0) -> Outcome:
        """One round on ``model``. ``attempt`` counts void rounds before it: each draws another cohort."""
        message = self.plan.algorithm.ask(model.state, round)
        down = tree.nbytes(message.default if isinstance(message, ByClient) else message)
        asked: Iterable[Task]
        pending: dict[str, Any] = {}
        measures: dict[str, float] = {}
        if self.plan.buffered is None:
            places, wanted = draw(self.plan, len(self.clients), self.seed, round, attempt)
            asked = self._asked(places, "train", message, model.version, round)
        else:
            landed, pending, measures = self._landing(self.plan.buffered, model, message, round)
            asked, places, wanted = landed, np.array([task.place for task in landed]), len(landed)
        self.opened(round, len(places))
        fold = self._gather(asked, len(places), wanted)
        if fold.effect != "commit":
            self.memories.discard()
            return Outcome(None, fold.reports, fold.failures, len(places), down, fold.reason)
        context = Context(round, len(self.clients), [self.clients.id_at(int(p)) for p in places], self.seed)
        total = self.plan.reduce.finish(fold.accumulator, context)
        stages = dict(model.stages)
        for i, stage in reversed(list(enumerate(self.plan.stages))):
            total, after = stage.decode(total, stages.get(str(i)), context)
            if after is not None:
                stages[str(i)] = after
        state = self.plan.algorithm.tell(model.state, total, round)
        self.memories.commit()
        model = Model(round, state, stages, pending)
        return Outcome(model, fold.reports, fold.failures, len(places), down, measures=measures)

    def ask_all(self, kind: Kind, message: Any, places: Any, version: int) -> Fold:
        """One task of a kind to each of these clients, outside of training; nothing is remembered."""
        fold = Fold(self.plan)
        with closing(self._answers(self._asked(places, kind, message, version, version))) as answers:
            for item in answers:
                fold.take(item)
        return fold

    def _asked(self, places: Any, kind: Kind, message: Any, version: int, round: int) -> Iterator[Task]:
        """A task for each of these places, made when it is pulled."""
        size = self.plan.block_size(len(places))
        for index, place in enumerate(places):
            client = self.clients.id_at(int(place))
            told = message.for_client(client) if isinstance(message, ByClient) else message
            yield Task(self.run, round, version, kind, client, told, self.seed, index, int(place), index // size)

    def _landing(
        self, buffered: Buffered, model: Model, message: Any, round: int
    ) -> tuple[list[Task], dict[str, Any], dict[str, float]]:
        """The tasks whose answers fill the buffer next, the clients then at work, and the round's measures."""
        sky, version = Sky.of(model.pending), model.version
        arrived, after, messages = next_arrivals(buffered, sky, version, message, self.clients, self.seed)
        size = self.plan.block_size(len(arrived))
        # A task's randomness is that of the round in which it started, whenever its answer arrives.
        tasks = [
            Task(
                self.run, flight.version + 1, flight.version, "train", self.clients.id_at(flight.place),
                messages[flight.version], self.seed, index, flight.place, index // size,
                buffered.discount(version - flight.version),
            )
            for index, flight in enumerate(arrived)
        ]  # fmt: skip
        age = sum(version - flight.version for flight in arrived) / len(arrived)
        return tasks, after.tree(), {"clock": after.clock, "staleness": age}

    def _answers(self, tasks: Iterable[Task]) -> Generator[Any, None, None]:
        yield from self.session.run(tasks)

    def _gather(self, tasks: Iterable[Task], asked: int, wanted: int) -> Gathered:
        policy, fold = self.plan.policy, Fold(self.plan)
        opened = policy.open(asked, wanted, self.clock())
        with closing(self._answers(tasks)) as answers:
            for item in answers:
                fold.take(item)
                for event in _events(item):
                    opened = policy.on(opened, event, self.clock())
                if opened.effect != "wait":
                    break
        if not asked:
            opened = policy.on(opened, "tick", self.clock())
        accumulator = fold.finish()
        for report in fold.reports:
            self.memories.pend(report.client, report.memory)
        return Gathered(accumulator, fold.reports, fold.failures, opened.effect, opened.reason)


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
