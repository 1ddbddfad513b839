"""What a parent and its workers tell each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insitu.core.types import Answer, Failure, Folded, Population, Task


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
    """Down: a block of tasks, and the memories of its clients.

    message  the number of the message that all tasks share and that went before, once a worker and round; their own is
             then empty. None: each task has its own
    choices  the inner engine's, as of the blocks before this one
    ahead    places of the clients of the block that is likely to come next
    alone    whether it is one client at its own pace, whose answer is wanted whatever else is cancelled
    """

    tasks: Sequence[Task]
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


@dataclass(frozen=True)
class Lost:
    """Up, or about a worker that died: a whole block without an answer, and why."""

    error: str
    trace: str
