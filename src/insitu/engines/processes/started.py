"""Clients that work at their own pace beside the blocks of ``run``: who waits for a worker, who has which, who is done.

A client goes back to the worker that had it last where that one is free, since its data are likely to be there still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from insitu.core.types import Answer, Failure, Folded, Task
from insitu.engines.processes.hand import Hand
from insitu.engines.processes.orders import Done, Lost


class Started:
    """The tasks that were started and have not been passed on."""

    def __init__(self) -> None:
        self._waiting: deque[Task] = deque()
        self._at_work: dict[int, Task] = {}
        self._there: deque[Answer | Failure] = deque()
        self._last: dict[str, int] = {}

    def add(self, task: Task) -> None:
        """To be worked off when a worker is free."""
        self._waiting.append(task)

    def pairs(self, free: Sequence[Hand]) -> list[tuple[Hand, Task]]:
        """Who is to work on what now: as many tasks as there are free workers, in the order in which they were added.

        Those whose last worker is free are given to it first, so that nobody else takes it from them.
        """
        tasks = [self._waiting.popleft() for _ in range(min(len(free), len(self._waiting)))]
        left, found = {hand.pid: hand for hand in free}, []
        tasks.sort(key=lambda task: self._last.get(task.client) not in left)
        for task in tasks:
            last = self._last.get(task.client)
            hand = left.pop(last if last in left else next(iter(left)))
            self._last[task.client] = hand.pid
            found.append((hand, task))
        return found

    def handed(self, number: int, task: Task) -> None:
        """The task is under way, as the block of this number."""
        self._at_work[number] = task

    def take(self, number: int, done: Done | Lost | None) -> bool:
        """What came back for a block, if that is one of these; None: nothing, so that it is handed out again."""
        if number not in self._at_work:
            return False
        task = self._at_work.pop(number)
        if done is None:
            self._waiting.appendleft(task)
        elif isinstance(done, Lost):
            self._there.append(Failure(task.client, task.index, task.block, done.error, done.trace))
        else:
            (item,) = done.items
            assert not isinstance(item, Folded)
            self._there.append(replace(item, task=task) if isinstance(item, Answer) else item)
        return True

    def first(self) -> Answer | Failure | None:
        """What arrived first of what has not been passed on."""
        return self._there.popleft() if self._there else None
