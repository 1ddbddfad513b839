"""The audit log, written in the background: what is noted here reaches the ledger within a second or so.

Who may write is fenced by the ledger; what cannot be written now is kept, up to a bound, and tried again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from insitu.core.errors import Fenced, StoreError
from insitu.core.federation import Ledger
from insitu.federation.logs import Tell

EVERY = 1.0
MOST = 10_000
"""Entries that wait at most; a coordinator whose ledger is away for long loses the oldest, and says so in its log."""
BATCH = 500


class Trail:
    """Takes notes from any thread."""

    def __init__(self, ledger: Ledger, tell: Tell, now: Callable[[], float] = time.time) -> None:
        self._ledger, self._tell, self._now = ledger, tell, now
        self._waiting: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def note(self, who: str, what: str, data: Mapping[str, Any]) -> None:
        """One entry."""
        entry = {"at": self._now(), "who": who, "what": what, "data": dict(data)}
        with self._lock:
            self._waiting.append(entry)
            lost = len(self._waiting) > MOST
            if lost:
                self._waiting.popleft()
        if lost:
            self._tell("error", "an audit entry is lost", reason=f"{MOST} wait for the ledger")

    def close(self) -> None:
        """Writes what is waiting, if it can."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._flush()

    def _write_all(self) -> None:
        while not self._end.wait(EVERY):
            self._flush()

    def _flush(self) -> None:
        while True:
            with self._lock:
                batch = list(self._waiting)[:BATCH]
            if not batch:
                return
            try:
                self._ledger.audit(batch)
            except Fenced:
                return
            except StoreError as error:
                self._tell("warning", "the audit log waits", error=str(error), entries=len(self._waiting))
                return
            with self._lock:
                for entry in batch:
                    if self._waiting and self._waiting[0] is entry:
                        self._waiting.popleft()
