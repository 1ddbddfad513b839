"""The server's half: ask → engine → reduce → undo stages → tell → commit. A round counts as a whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from insitu.core import spans, tree
from insitu.core.protocols import Session, Stepwise, TakesSteps, Waits
from insitu.core.types import Answer, ByClient, Context, Failure, Folded, Kind, LooksAhead, Population, Report, Task
from insitu.rounds import virtual
from insitu.rounds.arrivals import Record, Traffic
from insitu.rounds.buffered import USUAL_WORLD, Buffered, Sky, next_arrivals
from insitu.rounds.cohort import draw
from insitu.rounds.fold import Fold
from insitu.rounds.memory import Memories
from insitu.rounds.outcome import Heard, Model, Outcome
from insitu.rounds.plan import Plan
from insitu.rounds.world.crowd import Crowd


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
    rounds: int = 0
    """How many there will be, where that is known: while one trains, the next one's clients may be read."""
    pending: Mapping[str, Any] = field(default_factory=dict)
    """Of the model that the run goes on from: in real time, who was at work."""
    record: Record | None = None
    """Who is in which round, where a run in real time is replayed."""

    def run_round(self, model: Model, round: int, attempt: int = 0) -> Outcome:
        """One round on ``model``. ``attempt`` counts void rounds before it: each draws another cohort."""
        if isinstance(self.plan.algorithm, Stepwise):
            return self._in_steps(self.plan.algorithm, model, round)
        message = self.plan.algorithm.ask(model.state, round)
        down = tree.nbytes(message.default if isinstance(message, ByClient) else message)
        if self.plan.buffered is not None and self.plan.buffered.real:
            heard = self._in_real_time(model, message, round)
        elif self.plan.buffered is not None:
            heard = self._buffered(self.plan.buffered, model, message, round, down)
        elif self.plan.world is not None:
            heard = self._simulated(model, message, round, attempt, down)
        else:
            heard = self._as_it_comes(model, message, round, attempt)
        asked = len(heard.places)
        if heard.effect != "commit":
            self.memories.discard()
            spent = replace(model, pending=heard.pending or model.pending)
            return Outcome(None, heard.reports, heard.failures, asked, down, heard.reason, spent=spent)
        with spans.span("fold", "the server's step"):
            after = self._told(model, heard, round)
        self.memories.commit({report.index for report in heard.reports})
        return Outcome(
            after, heard.reports, heard.failures, asked, down, measures=heard.measures, arrivals=heard.arrivals
        )

    def ask_all(self, kind: Kind, message: Any, places: Any, version: int) -> Fold:
        """One task of a kind to each of these clients, outside of training; nothing is remembered."""
        fold = Fold(self.plan)
        with closing(self._answers(self._asked(places, kind, message, version, version))) as answers:
            for item in answers:
                fold.take(item)
        return fold

    def _in_steps(self, algorithm: Stepwise, model: Model, round: int) -> Outcome:
        """Several steps as one round, which counts as a whole: by the session, or one after another from here."""
        count, told = algorithm.steps_a_round(), self._sizes
        first, down = (round - 1) * count, tree.nbytes(self.plan.algorithm.params(model.state).shared) * count
        self.opened(round, len(told))
        if isinstance(self.session, TakesSteps):
            done = self.session.take_steps(model.state, round, first)
            if done is not None:
                after = None if done.trouble else Model(round, done.state, model.stages)
                return Outcome(after, list(done.reports), [], len(done.reports), down, done.trouble)
        after = model
        reports: dict[str, Report] = {}
        failures: dict[str, Failure] = {}
        for step in range(first, first + count):
            parts = spread(algorithm.examples(step, sum(told), self.seed), told)
            asked = algorithm.ask_step(after.state, round, parts)
            message = ByClient({self.clients.id_at(place): own for place, own in asked.items()}, {})
            places = np.array(sorted(asked))
            heard = self._gather(
                self._asked(places, "train", message, model.version, round), round, places, len(places)
            )
            failures |= {failure.client: failure for failure in heard.failures}
            if heard.effect != "commit":
                self.memories.discard()
                return Outcome(None, heard.reports, [*failures.values()], len(told), down, heard.reason)
            after = self._told(after, heard, round)
            for report in heard.reports:
                reports[report.client] = added(reports.get(report.client), report)
        self.memories.commit()
        return Outcome(after, [*reports.values()], [*failures.values()], len(told), down)

    @cached_property
    def _sizes(self) -> list[int]:
        """Every client's examples; those are loaded that do not say."""
        sizes = [self.clients.size_at(place) for place in range(len(self.clients))]
        return [len(self.clients.at(place).data) if n is None else n for place, n in enumerate(sizes)]

    @cached_property
    def _crowd(self) -> Crowd:
        return Crowd(self.plan.world or USUAL_WORLD, self.clients, self.seed)

    def _told(self, model: Model, heard: Heard, round: int) -> Model:
        """The model after the round: reduced, stages undone in reverse, taken in by the algorithm."""
        cohort = [self.clients.id_at(int(place)) for place in heard.places]
        context = Context(round, len(self.clients), cohort, self.seed)
        total = self.plan.reduce.finish(heard.accumulator, context)
        if self.plan.stages:  # which may keep what they see
            total = replace(total, spare=False)
        stages = dict(model.stages)
        for i, stage in reversed(list(enumerate(self.plan.stages))):
            total, after = stage.decode(total, stages.get(str(i)), context)
            if after is not None:
                stages[str(i)] = after
        state = self.plan.algorithm.tell(model.state, total, round)
        return Model(round, state, stages, heard.pending)

    def _asked(
        self, places: Any, kind: Kind, message: Any, version: int, round: int, first: tuple[int, int] = (0, 0),
        then: Iterable[int] = (),
    ) -> Iterator[Task]:  # fmt: skip
        """A task for each of these places, made when it is pulled; ``first`` is the first one's index and block.

        ``then``: who is asked after them.
        """
        self._ahead(chain(places, then))
        size = self.plan.block_size(len(places))
        for i, place in enumerate(places):
            client = self.clients.id_at(int(place))
            told = message.for_client(client) if isinstance(message, ByClient) else message
            index, block = first[0] + i, first[1] + i // size
            yield Task(self.run, round, version, kind, client, told, self.seed, index, int(place), block)

    def _answers(self, tasks: Iterable[Task], *, goes_on: bool = False) -> Generator[Any, None, None]:
        """``goes_on``: who is asked next was named as well, and is read meanwhile."""
        try:
            yield from self.session.run(tasks)
        finally:
            if not goes_on:
                self._ahead(())

    def _next_cohort(self, round: int) -> Iterator[int]:
        """Who is asked after this round unless it is void, drawn when the first of them is looked at.

        Nobody where clients evaluate the model in between: others are read then.
        """
        every = self.plan.evaluate_every
        if round < self.rounds and not (every and round % every == 0 and self.clients.has_holdout()):
            places, _ = draw(self.plan.cohort, self.plan.policy, len(self.clients), self.seed, round + 1)
            yield from places.tolist()

    def _ahead(self, places: Iterable[int]) -> None:
        if isinstance(self.clients, LooksAhead):
            self.clients.ahead(places)

    def _without_memory(self, item: Answer | Folded | Failure) -> Answer | Folded | Failure:
        """What came in, its memories put by at once: those of a whole cohort need not fit in this process."""
        if isinstance(item, Answer) and item.memory is not None:
            self.memories.pend(item.task.client, item.memory, item.task.index)
            return replace(item, memory=None)
        if isinstance(item, Folded) and any(report.memory is not None for report in item.reports):
            for report in item.reports:
                self.memories.pend(report.client, report.memory, report.index)
            return replace(item, reports=[replace(report, memory=None) for report in item.reports])
        return item

    def _as_it_comes(self, model: Model, message: Any, round: int, attempt: int) -> Heard:
        """On the real clock: a round is complete when enough have answered."""
        places, wanted = draw(self.plan.cohort, self.plan.policy, len(self.clients), self.seed, round, attempt)
        self.opened(round, len(places))
        tasks = self._asked(places, "train", message, model.version, round, then=self._next_cohort(round))
        return self._gather(tasks, round, places, wanted, goes_on=round < self.rounds)

    def _gather(
        self, tasks: Iterable[Task], round: int, places: np.ndarray, wanted: int, *, goes_on: bool = False
    ) -> Heard:
        policy, fold = self.plan.policy, Fold(self.plan)
        if isinstance(self.session, Waits):
            self.session.expect(wanted)
        opened = policy.open(len(places), wanted, self.clock())
        with closing(self._answers(tasks, goes_on=goes_on)) as answers:
            for item in answers:
                fold.take(self._without_memory(item))
                for event in _events(item):
                    opened = policy.on(opened, event, self.clock())
                if opened.effect != "wait":
                    break
                del item  # a model's room, which the next one needs
        if not len(places):
            opened = policy.on(opened, "tick", self.clock())
        return Heard(fold.finish(), fold.reports, fold.failures, places, opened.effect, opened.reason)

    def _simulated(self, model: Model, message: Any, round: int, attempt: int, down: int) -> Heard:
        """On the simulated clock: the policy hears of all arrivals first, and whoever counts does the work."""
        clock, fold = virtual.Clock.of(model.pending), Fold(self.plan)
        asked = virtual.ask(self.plan, self._crowd, clock, down, round, attempt)
        self.opened(round, len(asked.places))
        verdict = virtual.judge(self.plan.policy, asked)
        done: list[int] = []
        blocks = 0
        while verdict.effect == "commit" and (new := np.setdiff1d(verdict.counted, done)).size:
            # In place of those whose work failed, the policy counts the next to arrive: they come after, in new blocks.
            tasks = self._asked(asked.places[new], "train", message, model.version, round, (len(done), blocks))
            with closing(self._answers(tasks)) as answers:
                for item in answers:
                    fold.take(self._without_memory(item))
            done += new.tolist()
            blocks += -(-len(new) // self.plan.block_size(len(new)))
            broken = [done[failure.index] for failure in fold.failures]
            verdict = virtual.judge(self.plan.policy, asked, broken)
        accumulator, up = fold.finish(), clock.bytes_up
        now, committed = asked.since + verdict.seconds, clock.committed
        estimate = down if up is None else up
        after = virtual.Clock(now, committed, up)
        told = virtual.measures(asked, verdict, after, down, estimate)
        if verdict.effect == "commit":
            after = virtual.Clock(now, now, mean_bytes_up(fold.reports))
        return Heard(
            accumulator, fold.reports, fold.failures, asked.places, verdict.effect, verdict.reason, after.tree(), told
        )

    def _buffered(self, buffered: Buffered, model: Model, message: Any, round: int, down: int) -> Heard:
        """Asynchronously: the answers that fill the buffer next, and the clients then at work."""
        version = model.version
        landed = next_arrivals(self.plan, Sky.of(model.pending), version, message, down, self._crowd)
        size = self.plan.block_size(len(landed.arrived))
        # A task's randomness is that of the round in which it started, whenever its answer arrives.
        tasks = [
            Task(
                self.run, flight.version + 1, flight.version, "train", self.clients.id_at(flight.place),
                landed.messages[flight.version], self.seed, index, flight.place, index // size,
                buffered.discount(version - flight.version),
            )
            for index, flight in enumerate(landed.arrived)
        ]  # fmt: skip
        self.opened(round, len(tasks))
        heard = self._gather(tasks, round, np.array([task.place for task in tasks]), len(tasks))
        sky = replace(landed.sky, bytes_up=mean_bytes_up(heard.reports))
        return replace(heard, pending=sky.tree(), measures=landed.measures)

    def _in_real_time(self, model: Model, message: Any, round: int) -> Heard:
        """Asynchronously, as workers really answer; whoever is still at work goes on meanwhile."""
        assert self.plan.buffered is not None
        policy, fold, size = self.plan.policy, Fold(self.plan), self.plan.buffered.size
        traffic = self._traffic
        self.opened(round, size)
        landed = traffic.gather(model.version, message, round)
        opened = policy.open(len(landed.answers) + len(landed.failures), size, self.clock())
        for _ in landed.failures:
            opened = policy.on(opened, "failed", opened.since)
        places = np.array([answer.task.place for answer in landed.answers], dtype=np.int64)
        for answer in landed.answers:
            fold.take(self._without_memory(answer))
            opened = policy.on(opened, "arrived", opened.since)
        accumulator, failures = fold.finish(), [*landed.failures, *fold.failures]
        return Heard(
            accumulator, fold.reports, failures, places, opened.effect, opened.reason, landed.pending, landed.measures,
            landed.rows,
        )  # fmt: skip

    @cached_property
    def _traffic(self) -> Traffic:
        return Traffic(self.plan, self.session, self.clients, self.run, self.seed, self.pending, self.record)


def spread(examples: np.ndarray, sizes: Sequence[int]) -> dict[int, np.ndarray]:
    """Examples, numbered through all clients in their order, as positions among each client's own: by place."""
    ends = np.cumsum(sizes)
    owner = np.searchsorted(ends, examples, side="right")
    order = np.argsort(owner, kind="stable")
    places, starts = np.unique(owner[order], return_index=True)
    parts = np.split(examples[order], starts[1:])
    return {int(p): part - (ends[p] - sizes[p]) for p, part in zip(places, parts, strict=True)}


def added(before: Report | None, report: Report) -> Report:
    """A client's reports of several steps as one."""
    if before is None:
        return replace(report, memory=None)
    metrics = {name: before.metrics.get(name, 0.0) + value for name, value in report.metrics.items()}
    return replace(before, metrics=metrics, bytes_up=before.bytes_up + report.bytes_up)


def mean_bytes_up(reports: list[Report]) -> float | None:
    """Mean bytes of the updates, which says how large the next ones will be; None where there are none."""
    return sum(report.bytes_up for report in reports) / len(reports) if reports else None


def _events(item: Any) -> list[Any]:
    if isinstance(item, Failure):
        return ["failed"]
    return ["arrived"] * (len(item.reports) if isinstance(item, Folded) else 1)
