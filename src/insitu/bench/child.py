"""An entrant from outside: its process, the rounds it is asked for, and what they cost."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from insitu.bench import processes
from insitu.core.errors import EngineError


@dataclass
class Child:
    """One entrant's process. Use as a context: at the end it is told to stop, and is ended if it does not.

    seconds and cpu are of each round, in order; ``setup`` is the seconds until data and model were there, ``answer``
    the last answer.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    setup: float = 0.0
    peak: int = 0

    def __enter__(self) -> Child:
        began = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **self.environment},
        )  # fmt: skip
        try:
            self._read()
        except BaseException:
            self._process.kill()
            self.__exit__()
            raise
        self.setup = time.perf_counter() - began
        return self

    @property
    def pid(self) -> int:
        """The root of the entrant's tree of processes."""
        return self._process.pid

    def round(self, number: int, cohort: Sequence[int], *, count: bool = True) -> float:
        """Asks for one round; returns its seconds. ``count=False``: they are not kept."""
        assert self._process.stdin is not None
        before = processes.cpu_seconds(self.pid)
        began = time.perf_counter()
        with suppress(BrokenPipeError):  # it has ended: reading says why
            self._process.stdin.write(json.dumps({"round": number, "cohort": list(cohort)}) + "\n")
            self._process.stdin.flush()
        self.answer = self._read()
        seconds = time.perf_counter() - began
        if count:
            self.seconds.append(seconds)
            self.cpu.append(processes.cpu_seconds(self.pid) - before)
        return seconds

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            self._process.wait()
            self._log.seek(0)
            said = " | ".join(line.strip() for line in self._log.read().splitlines()[-3:] if line.strip())
            raise EngineError(f"{self.name} ended with code {self._process.returncode}: {said or 'it said nothing'}")
        return json.loads(text)

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
