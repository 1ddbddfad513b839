"""A worker's plan, clients and inner engine: one block in, its answers out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import takewhile
from typing import Any

from insitu.core.protocols import Engine, Session, Setting
from insitu.core.types import Answer, Failure, Folded, LooksAhead, Task
from insitu.engines.inline import Inline, alone
from insitu.engines.processes.orders import Done, Load, Order, Ready
from insitu.rounds.fold import in_blocks


class Bench:
    """Works off one block after another."""

    def __init__(self, load: Load, choices: Mapping[str, Any]) -> None:
        self._memories: dict[str, Any] = {}
        self._notices: list[str] = []
        self._setting = Setting(
            load.plan, load.clients, self._memories, load.rounds, load.seed, notify=self._notices.append
        )
        self._device = str(load.options["device"] or "cpu")
        self._engine = self._inner(load)
        self._session = self._open(choices)
        self._message: tuple[int, Any] = (0, None)

    def ready(self) -> Ready:
        """What the inner engine is and what it chose."""
        return Ready(self._engine.part_name(), dict(self._session.choices), self._said())

    def keep(self, number: int, message: Any) -> None:
        """Takes the message that the tasks of the next blocks share."""
        self._message = (number, message)

    def work(self, order: Order, wanted: Callable[[], bool]) -> Done:
        """Works a block off, as long as it is wanted. Raises what the inner engine raises; then call ``reopen``."""
        if order.message is None:
            tasks = order.tasks.apart()
        else:
            number, message = self._message
            assert number == order.message
            tasks = order.tasks.apart(message=message)
        self._memories.clear()
        self._memories.update(order.memories)
        # A block knows what the blocks before it found out, not what this worker happened to do before.
        self._session.choices.clear()
        self._session.choices.update(order.choices)
        clients = self._setting.clients
        if isinstance(clients, LooksAhead):
            clients.ahead([*(task.place for task in tasks), *order.ahead])
        if order.alone:
            told = alone(self._session, self._setting, tasks[0], self._device)
            return Done([_bare(told) if isinstance(told, Answer) else told], order.choices, self._said())
        items = self._gather(tasks, wanted)
        if items is None:
            self.reopen(order.choices)
            return Done([], order.choices)
        return Done(items, dict(self._session.choices), self._said())

    def reopen(self, choices: Mapping[str, Any]) -> None:
        """A new inner session, since the last one may have been left in the middle of a block."""
        self._said()
        self._session.close()
        self._session = self._open(choices)

    def close(self) -> None:
        """Ends the inner session."""
        self._session.close()

    def _inner(self, load: Load) -> Engine:
        """Lanes where the plan allows them, else one client after another."""
        reason = "the plan does not compute with torch"
        if "torch" in sys.modules:
            from insitu.engines.vectorized import Vectorized

            engine = Vectorized(**load.options)
            if (refused := engine.refuses(load.plan)) is None:
                return engine
            reason = refused
        if load.options["lanes"] is not None:
            self._notices.append(f"lanes={load.options['lanes']} has no effect: {reason}")
        return Inline()

    def _open(self, choices: Mapping[str, Any]) -> Session:
        return self._engine.open(replace(self._setting, choices=choices))

    def _said(self) -> list[str]:
        said = list(self._notices)
        self._notices.clear()
        return said

    def _gather(self, tasks: Sequence[Task], wanted: Callable[[], bool]) -> list[Answer | Folded | Failure] | None:
        """What the inner session yields, its answers folded block by block where nobody has to see each.

        None: cancelled.
        """
        plan = self._setting.plan
        with closing(self._session.run(tasks)) as items:  # type: ignore[type-var]  # a generator, by the protocol's text
            bare = (_bare(item) if isinstance(item, Answer) else item for item in items)
            kept = (
                in_blocks(plan, bare, wanted) if foldable(plan, tasks[0]) else list(takewhile(lambda _: wanted(), bare))
            )
            return kept if wanted() else None


def foldable(plan: Any, task: Task) -> bool:
    """Whether a block's answers may become one: not where each is needed, or some may turn out not to be needed."""
    if task.kind == "evaluate":
        return True
    return plan.reduce.needs == "stream" and not (task.kind == "train" and plan.stops_early())


def _bare(answer: Answer) -> Answer:
    """The answer without what its asker knows (the message) or does not keep (a memory outside of training)."""
    memory = answer.memory if answer.task.kind == "train" else None
    return replace(answer, task=replace(answer.task, message={}), memory=memory)
