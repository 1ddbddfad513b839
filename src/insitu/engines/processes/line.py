"""The blocks of one call of ``run``, in order, from being pulled to being passed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from insitu.core.types import Answer, Failure, Folded, Task
from insitu.engines.processes.orders import Done, Lost
from insitu.rounds.blocks import joined


@dataclass(eq=False)
class Block:
    """Consecutive tasks that one worker works off: a block of the server's, or several.

    number   by which its answer is known
    version  of the inner engine's choices with which it was handed out last
    done     what came back
    """

    number: int
    tasks: list[Task]
    version: int = 0
    done: Done | Lost | None = None


class Line:
    """Answers are passed on in the order of the blocks, whichever is there first.

    So a round that is complete before all have answered (over-selection) is complete with the same clients for any
    number of workers.
    """

    def __init__(self, work: Iterable[Task], numbers: Iterator[int], most: int, together: int = 0) -> None:
        """``most`` blocks may wait or be under way. ``together``: the tasks up to which blocks are joined."""
        self._work = joined(work, together)
        self._numbers, self._most = numbers, most
        self._pulled = False
        self._blocks: deque[Block] = deque()
        self._again: deque[Block] = deque()
        self._kept: dict[Any, Block] = {}

    def waiting(self) -> bool:
        """Whether nothing can be passed on before more comes back."""
        return not self.ready() and not self.over()

    def over(self) -> bool:
        """Whether all work was pulled, done and passed on."""
        return self._pulled and not self._blocks

    def next(self, who: Any = None) -> Block | None:
        """A block to be handed out to a worker; None where there is none, or no room for more.

        The one that was kept for it, if any; one kept for another only where there is nothing else: so nobody waits.
        """
        if self._again:
            return self._again.popleft()
        if who in self._kept:
            return self._kept.pop(who)
        if block := self._pull():
            return block
        if not self._kept:
            return None
        return self._kept.pop(min(self._kept, key=lambda other: self._kept[other].number))

    def keep(self, who: Any) -> Block | None:
        """The block that this worker is likely to get after the one that it has: it can read its clients meanwhile."""
        if who not in self._kept and (block := self._pull()):
            self._kept[who] = block
        return self._kept.get(who)

    def _pull(self) -> Block | None:
        if len(self._blocks) >= self._most:
            return None
        if (tasks := next(self._work, None)) is None:
            self._pulled = True
            return None
        self._blocks.append(Block(next(self._numbers), tasks))
        return self._blocks[-1]

    def take(self, number: int, done: Done | Lost | None, version: int) -> None:
        """What came back for a block; it is worked off again where choices have changed since it was handed out, or
        where nothing came."""
        block = next((block for block in self._blocks if block.number == number), None)
        if block is None:
            return  # of an earlier call, cancelled
        if done is not None and (block.version == version or isinstance(done, Lost)):
            block.done = done
        else:
            self._again.append(block)

    def ready(self) -> bool:
        """Whether the next block to be passed on is done."""
        return bool(self._blocks) and self._blocks[0].done is not None

    def first(self) -> Block | None:
        """The next block to be passed on, if it is done. It leaves the line."""
        return self._blocks.popleft() if self.ready() else None

    def again(self) -> None:
        """Choices have changed: what is done and waits is to be worked off again."""
        for block in self._blocks:
            if isinstance(block.done, Done):
                block.done = None
                self._again.append(block)


def places(block: Block | None) -> list[int]:
    """Where the block's clients are in the population."""
    return [task.place for task in block.tasks] if block else []


def told(block: Block) -> Iterator[Answer | Folded | Failure]:
    """A block's answers, each with the task it answers; or a failure a client, where the block was lost."""
    if isinstance(block.done, Lost):
        for task in block.tasks:
            yield Failure(task.client, task.index, task.block, block.done.error, block.done.trace)
    elif block.done is not None:
        tasks: dict[int, Any] = {task.index: task for task in block.tasks}
        for item in block.done.items:
            yield replace(item, task=tasks[item.task.index]) if isinstance(item, Answer) else item
