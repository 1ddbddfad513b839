"""Inline: one client after another in this process. The meaning that every other engine is tested against."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

from insitu.core import spans
from insitu.core.protocols import Engine, Session, Setting
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

    seats = 1

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.choices: dict[str, Any] = {}
        self._started: deque[Task] = deque()

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        for task in work:
            yield attempt(self.setting, task)

    def start(self, task: Task) -> None:
        """Its turn comes after those that were started before."""
        self._started.append(task)

    def arrived(self) -> Answer | Failure:
        """Works the oldest off: here, who starts first arrives first."""
        with one_thread():
            return attempt(self.setting, self._started.popleft())

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


def alone(session: Session, setting: Setting, task: Task, device: str) -> Answer | Failure:
    """One task on one client by itself: as inline does it on the CPU, so with the same bits; elsewhere by a lane."""
    with one_thread():
        if device == "cpu":
            return attempt(setting, task)
        (told,) = session.run([task])
    assert not isinstance(told, Folded)
    return told


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread, as worker processes do: several may sum in another order, which shows in the bits."""
    torch = sys.modules.get("torch")  # where nobody has imported it, nobody computes with it
    threads = torch.get_num_threads() if torch else 1
    with _libraries(len(sys.modules)).limit(limits=1):
        try:
            if torch and threads > 1:
                torch.set_num_threads(1)
            yield
        finally:
            if torch and threads > 1:
                torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _libraries(modules: int) -> ThreadpoolController:
    """NumPy's and SciPy's own threads. To find the libraries takes milliseconds: again only after further imports."""
    return ThreadpoolController()
