"""Inline: one client after another in this process. The meaning that every other engine is tested against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from insitu.core import spans
from insitu.core.protocols import Engine, Setting
from insitu.core.types import Answer, Failure, Folded, Task
from insitu.rounds.client import failure, work


@dataclass(frozen=True)
class Inline(Engine):
    """Runs any plan."""

    def refuses(self, plan: Any) -> str | None:
        return None

    def open(self, setting: Setting) -> InlineSession:
        return InlineSession(setting)


class InlineSession:
    """Works tasks off in their order."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.choices: dict[str, Any] = {}

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        for task in work:
            yield attempt(self.setting, task)

    def close(self) -> None:
        """Nothing was started."""


def attempt(setting: Setting, task: Task) -> Answer | Failure:
    """One task on one client; what goes wrong becomes a value."""
    try:
        with spans.span("data", "client"):
            client = setting.clients.at(task.place)
        with spans.span("train", "client"):
            return work(setting.plan, task, client, setting.memories.get(task.client))
    except Exception as error:
        return failure(task, error)
