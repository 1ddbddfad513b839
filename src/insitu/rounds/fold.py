"""Folding: updates become one accumulator in an order that does not depend on who arrives first.

The cohort is cut into blocks of consecutive clients. Within a block updates are added in the cohort's order (or in the
order of the engine that folded the whole block), blocks are merged in order: so the sum has the same bits for any
number of workers and any order of arrival. An answer that comes early waits; in the usual case none does, and memory
is one accumulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from insitu.core import spans, tree
from insitu.core.errors import UpdateError
from insitu.core.types import Answer, Context, Failure, Folded, Report
from insitu.rounds.client import failure
from insitu.rounds.plan import Plan


def fold_in(plan: Plan, accumulator: Any, answer: Answer) -> Any:
    """The accumulator with one more answer, after the server halves that work on single updates."""
    if answer.task.kind == "evaluate":
        return accumulator
    update = answer.update
    for stage in reversed(plan.stages):
        if stage.decodes == "each" and answer.task.kind == "train":
            context = Context(answer.task.round, 0, seed=answer.task.seed, client=answer.task.client)
            update = stage.decode_each(update, context)
    if answer.late != 1:
        update = replace(update, value={**update.value, "shared": tree.scale(update.value["shared"], answer.late)})
    return plan.reduce.add(accumulator, update, answer.task.client)


def in_blocks(
    plan: Plan, items: Iterable[Answer | Folded | Failure], wanted: Callable[[], bool] = lambda: True
) -> list[Answer | Folded | Failure]:
    """The items, all answers of a block made one: what a process tells another of it. None of them if not wanted."""
    sums: dict[int, tuple[Any, list[Report]]] = {}
    kept: list[Answer | Folded | Failure] = []
    for item in items:
        if not wanted():
            return []
        if not isinstance(item, Answer):
            kept.append(item)
            continue
        accumulator, reports = sums.get(item.task.block) or (plan.reduce.zero(), [])
        try:
            accumulator = fold_in(plan, accumulator, item)
        except UpdateError as error:
            kept.append(failure(item.task, error))
        else:
            reports.append(item.report())
            sums[item.task.block] = accumulator, reports
    return [*kept, *(Folded(block, accumulator, reports) for block, (accumulator, reports) in sums.items())]


class Fold:
    """The fold of one round. Feed it what the engine yields; ``finish`` gives the accumulator."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.reports: list[Report] = []
        self.failures: list[Failure] = []
        self._total = plan.reduce.zero()
        self._block: tuple[int, Any] = (0, plan.reduce.zero())
        self._stored: list[Answer] = []
        """Of the block that is open: they are added when all of it is known, each piece of all of them together."""
        self._waiting: dict[int, Answer | Folded | None] = {}
        self._next = 0

    def take(self, item: Answer | Folded | Failure) -> None:
        """One thing that the engine yielded, in any order."""
        with spans.span("fold", "take"):
            self._take(item)

    def finish(self) -> Any:
        """The accumulator of all that was taken; gaps (clients that were never heard of) are passed over."""
        with spans.span("fold", "finish"):
            return self._finish()

    def _take(self, item: Answer | Folded | Failure) -> None:
        if isinstance(item, Failure):
            self.failures.append(item)
            self._waiting[item.index] = None
        elif isinstance(item, Answer):
            self.reports.append(item.report())
            if item.task.index == self._next and not self._waiting:
                self._fold(item)
                self._next += 1
                return
            self._waiting[item.task.index] = item
        else:
            self.reports.extend(item.reports)
            places = sorted(report.index for report in item.reports)
            for place in places:
                self._waiting[place] = None
            if places:
                self._waiting[places[0]] = item
        self._advance()

    def _finish(self) -> Any:
        for place in sorted(self._waiting):
            self._fold(self._waiting.pop(place))
        self._close_block()
        self.reports.sort(key=lambda report: report.index)
        self.failures.sort(key=lambda failure: failure.index)
        return self._total

    def _advance(self) -> None:
        while self._next in self._waiting:
            self._fold(self._waiting.pop(self._next))
            self._next += 1

    def _fold(self, item: Answer | Folded | None) -> None:
        if item is None:
            return
        block = item.block if isinstance(item, Folded) else item.task.block
        if block != self._block[0]:
            self._close_block()
            self._block = (block, self.plan.reduce.zero())
        if isinstance(item, Answer) and item.stored:
            self._stored.append(item)
            return
        try:  # both look before anything is added: where they refuse, the accumulator is as it was
            if isinstance(item, Folded):
                accumulator = self.plan.reduce.merge(self._block[1], item.accumulator)
            else:
                accumulator = fold_in(self.plan, self._block[1], item)
        except UpdateError as error:
            self._refuse(item, error)
            return
        self._block = (block, accumulator)

    def _refuse(self, item: Answer | Folded, error: UpdateError) -> None:
        block = item.block if isinstance(item, Folded) else item.task.block
        refused = {r.index: r.client for r in (item.reports if isinstance(item, Folded) else (item.report(),))}
        self.reports = [report for report in self.reports if report.index not in refused]
        self.failures.extend(Failure(c, index, block, f"UpdateError: {error}") for index, c in refused.items())

    def _close_block(self) -> None:
        if self._stored:
            block = [(answer.update, answer.task.client) for answer in self._stored]
            self._total, refused = self.plan.reduce.add_stored(self._total, block)
            for answer in self._stored:
                if answer.task.client in refused:
                    self._refuse(answer, refused[answer.task.client])
            self._stored = []
        self._total = self.plan.reduce.merge(self._total, self._block[1])
        self._block = (self._block[0], self.plan.reduce.zero())
