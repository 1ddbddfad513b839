"""What a parent and its workers tell each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from insitu.core.types import Answer, Failure, Folded, Population, Report, Task
from insitu.engines.processes.alike import Alike, alike


@dataclass(frozen=True)
class Load:
    """Down, first: what a run is. ``options`` are those of the inner engine, where it is the one with lanes."""

    plan: Any
    clients: Population
    rounds: int
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Ready:
    """Up, once: the inner engine's name, what it chose, and what it has to say to the user."""

    engine: str
    choices: dict[str, Any]
    notices: Sequence[str]


@dataclass(frozen=True)
class Order:
    """Down: a block of tasks, and the memories of those of its clients that have one.

    message  the number of the message that all tasks share and that went before, once a worker and round; their own is
             then empty. None: each task has its own
    choices  the inner engine's, as of the blocks before this one
    ahead    places of the clients of the block that is likely to come next
    alone    whether it is one client at its own pace, whose answer is wanted whatever else is cancelled
    """

    tasks: Alike[Task]
    memories: Mapping[str, Any]
    message: int | None
    choices: Mapping[str, Any]
    ahead: Sequence[int] = ()
    alone: bool = False


@dataclass(frozen=True)
class Done:
    """Up: what the inner engine made of a block, the choices that it has now, and what it has to say."""

    items: Sequence[Answer | Folded | Failure]
    choices: Mapping[str, Any]
    notices: Sequence[str] = ()

    def flat(self) -> Flat:
        """As it travels: a block's reports as columns."""
        folded = [item for item in self.items if isinstance(item, Folded)]
        bare = [replace(item, reports=()) if isinstance(item, Folded) else item for item in self.items]
        return Flat(replace(self, items=bare), [alike(item.reports) for item in folded])


@dataclass(frozen=True)
class Flat:
    """Up: a Done whose ``Folded`` are without their reports, which stand beside it in the same order."""

    done: Done
    reports: Sequence[Alike[Report]]

    def whole(self) -> Done:
        """The Done that it was."""
        reports = iter(self.reports)
        items = [replace(x, reports=next(reports).apart()) if isinstance(x, Folded) else x for x in self.done.items]
        return replace(self.done, items=items)


@dataclass(frozen=True)
class Lost:
    """Up, or about a worker that died: a whole block without an answer, and why."""

    error: str
    trace: str
