"""The log: one JSON object a line, everything in it escaped. A sink that is blocked, full or gone holds up nobody."""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
WAITING = 10_000
"""Lines that wait for a slow sink; those beyond are counted and left out."""
LONGEST = 2000
"""Characters of one text in a line; a stranger may have chosen it."""


class Log:
    """Writes lines from a thread of its own.

    ``log.info("update refused", site="berlin", code="BAD_UPDATE")`` gives
    ``{"time": "…", "level": "info", "event": "update refused", "site": "berlin", …}``. Nothing here raises or waits:
    a line that has no room is dropped, and the next one that is written says how many were, as ``dropped``.
    """

    def __init__(self, path: Path | None = None, level: str = "info") -> None:
        """``path`` None: standard error."""
        self._path, self._least = path, LEVELS.index(level)
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING)
        self.dropped = 0
        """Lines that were left out since the log was opened."""
        self._told = 0
        self._again = threading.Event()
        self._handle: int | None = None
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def write(self, level: str, event: str, **fields: Any) -> None:
        """One line, from any thread."""
        if LEVELS.index(level) < self._least:
            return
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": level, "event": event, **{key: _short(value) for key, value in fields.items()}}
        dropped = self.dropped
        if dropped > self._told:
            line["dropped"] = dropped - self._told
        try:
            self._lines.put_nowait(json.dumps(line, default=str))  # ASCII, control characters escaped
            self._told = dropped
        except (queue.Full, ValueError, RecursionError):
            self.dropped += 1

    def debug(self, event: str, **fields: Any) -> None:
        """What is only of interest in a search for a fault."""
        self.write("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """What happens in good order."""
        self.write("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What somebody should look at."""
        self.write("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """What stops something."""
        self.write("error", event, **fields)

    def reopen(self) -> None:
        """Opens the file anew, after it has been moved away."""
        self._again.set()

    def close(self, wait: float = 2.0) -> None:
        """Writes what is waiting, for so many seconds at most."""
        until = time.monotonic() + wait
        while time.monotonic() < until:
            try:
                self._lines.put_nowait(None)
                break
            except queue.Full:
                time.sleep(0.01)
        self._thread.join(max(0.0, until - time.monotonic()))
        if not self._thread.is_alive():
            self._shut()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                if self._again.is_set():
                    self._again.clear()
                    self._shut()
                _write(self._opened(), line.encode() + b"\n")
            except (OSError, ValueError):
                self.dropped += 1
                self._shut()

    def _opened(self) -> int:
        if self._path is None:
            return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        if self._handle is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        return self._handle

    def _shut(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)


class Handler(logging.Handler):
    """Passes on what Python's own ``logging`` is told, by the libraries that know no other log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One line; an exception is its last line, and where it came from."""
        try:
            fields: dict[str, Any] = {"logger": record.name}
            if record.exc_info and record.exc_info[1] is not None:
                fields["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
                fields["trace"] = "".join(traceback.format_tb(record.exc_info[2]))[-LONGEST:]
            self._log.write(_level(record.levelno), record.getMessage(), **fields)
        except Exception:  # a log has no effect on what it tells of
            self._log.dropped += 1


def _level(number: int) -> str:
    return LEVELS[min(3, max(0, number // 10 - 1))]


Tell = Callable[..., None]
"""``tell(level, event, **fields)``: how parts that know no log write to one."""


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]}… ({len(value)} characters)"
    return value
