"""A run that begins in lanes in this process, and is joined by worker processes when that pays."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from threading import Thread
from typing import Any

from insitu.core import remembered
from insitu.core.protocols import Setting
from insitu.core.types import Answer, Failure, Folded, Task
from insitu.engines.processes import Processes
from insitu.engines.processes.engine import usable_cores
from insitu.engines.processes.session import ProcessesSession
from insitu.engines.vectorized import Vectorized
from insitu.rounds.blocks import blocks_in_a_round

START = 4.0
"""Seconds that workers take to start, until it has been measured on this machine."""
MARGIN = 1.25
"""How much more than their start workers must save. They start on cores that nobody uses, while training goes on."""
UNEVEN = 1.15
"""How much longer the longest worker's share of a round is than the mean."""


class AutoSession:
    """Passes rounds on to lanes here, or shares them out: ``choices["workers"]`` is how many processes are at work."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._workers = self._most_workers()
        given = {name: value for name, value in setting.choices.items() if name not in ("workers", "inner")}
        if self._workers > 1:
            # Workers have one thread each. With as many here, it does not show in the bits when a run moved.
            given = {"threads": 1, **given}
        self._here = Vectorized().open(replace(setting, choices=given))
        self.choices: dict[str, Any] = self._here.choices
        self.choices.setdefault("inner", "vectorized")
        self.choices["workers"] = 1
        self._there: ProcessesSession | None = None
        self._starting: Thread | None = None
        self._notices: list[str] = []
        self._rounds = 0
        if setting.choices.get("workers", 1) > 1:
            self._start()
            self._move()

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        work = iter(work)
        if (first := next(work, None)) is None:
            return
        if self._starting and not self._starting.is_alive():
            self._move()
        began = time.perf_counter()
        try:
            yield from (self._there or self._here).run(chain([first], work))
        finally:  # whoever has heard enough closes this generator at its last answer
            if first.kind == "train" and self._there is None and self._starting is None:
                self._rounds += 1
                if self._rounds > 1:  # the first one measures and warms up
                    self._consider(time.perf_counter() - began, self.setting.rounds - first.round)

    def close(self) -> None:
        """Ends what was started."""
        if self._starting:
            self._starting.join()
        if self._there:
            self._there.close()
        self._here.close()

    def _most_workers(self) -> int:
        """Workers that can have work at the same time; 1 where there is a GPU, or a plan that cannot be sent."""
        if sys.modules["torch"].cuda.is_available() or Processes().refuses(self.setting.plan) is not None:
            return 1
        return min(usable_cores(), blocks_in_a_round(self.setting))

    def _consider(self, seconds: float, rounds: int) -> None:
        """Starts workers where they save, over the rounds that are left, more than they cost."""
        cost = float((remembered.recall(self._name()) or {}).get("seconds", START))
        if self._workers > 1 and rounds * seconds * (1 - UNEVEN / self._workers) > MARGIN * cost:
            self._starting = Thread(target=self._start, daemon=True)
            self._starting.start()

    def _start(self) -> None:
        given = {name: value for name, value in self.choices.items() if name not in ("workers", "inner")}
        setting = replace(self.setting, choices=given, notify=self._notices.append)
        began = time.perf_counter()
        try:
            options = {"lanes": None, "compile": "auto", "device": "cpu"}
            self._there = ProcessesSession(setting, self._workers - 1, options, self._here)
        except Exception as error:
            self._notices.append(f"worker processes cannot be had, so this process works alone: {error}")
            self._workers = 1
        else:
            remembered.remember(self._name(), {"seconds": time.perf_counter() - began})

    def _move(self) -> None:
        """The workers are there, or cannot be had: says so, and from here on they do the work."""
        self._starting = None
        if self._there:
            self.choices["workers"] = self._workers
            self.setting.notify(f"{self._workers} processes are at work from here on")
        for notice in self._notices:
            self.setting.notify(notice)
        self._notices.clear()

    def _name(self) -> str:
        return remembered.key(what="workers", workers=self._workers, model=type(self.setting.plan.learner).__name__)
