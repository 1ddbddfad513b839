"""Reading and writing a database: a function of a connection, done as a whole or not at all."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from insitu.core.errors import DiskFull, StoreError

T = TypeVar("T")
Work = Callable[[Connection], T]
"""What is done in a transaction. It may be done again where the first attempt is known to have left nothing."""


class Database(ABC):
    """Transactions at ``place``, which stands in every message. ``name`` is that of its failpoints: store, ledger.

    All may be called from any thread; writes of one object are done one after the other.
    """

    patience: float = 0.0
    """Seconds for which what may pass by itself (a server that restarts) is tried again."""

    def __init__(self, place: str, name: str) -> None:
        self.place, self.name = place, name
        self._writing = threading.Lock()

    def read(self, work: Work[T]) -> T:
        """Does ``work`` on what was there at the moment of its first statement, whatever others write meanwhile."""
        return self._patiently(lambda: self._read(work), "read", lambda: "", self.patience)

    def write(self, work: Work[T], safe: Callable[[], str], *, patience: float | None = None) -> T:
        """Does ``work`` and makes it durable; all of it is written, once, or nothing.

        ``safe`` says, for the StoreError where it fails, what the caller has lost by that and what not.
        """
        with self._writing:
            attempt = self._writer(work)
            return self._patiently(attempt, "written", safe, self.patience if patience is None else patience)

    @abstractmethod
    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by the clock of the database."""

    def steady(self) -> float:
        """Seconds by a clock of this process that never jumps."""
        return time.monotonic()

    @abstractmethod
    def close(self) -> None:
        """Lets go of it; the next transaction opens it again."""

    # ------------------------------------------------------------ what a dialect does its own way

    @abstractmethod
    def _read(self, work: Work[T]) -> T: ...

    @abstractmethod
    def _writer(self, work: Work[T]) -> Callable[[], T]:
        """One attempt to write; called again after a failure that may pass."""

    @abstractmethod
    def _failed(self, error: DBAPIError) -> bool:
        """Lets go of what the failure has spoilt; whether the same may succeed later."""

    @abstractmethod
    def _explain(self, error: DBAPIError) -> str:
        """What went wrong, and the cure."""

    @abstractmethod
    def _full(self, error: DBAPIError) -> bool:
        """Whether there was no room left."""

    def _patiently(self, attempt: Callable[[], T], done: str, safe: Callable[[], str], patience: float) -> T:
        until = time.monotonic() + patience
        pause = 0.02
        while True:
            try:
                return attempt()
            except DBAPIError as error:
                again = self._failed(error)
                left = until - time.monotonic()
                if not again or left <= 0:
                    kind = DiskFull if self._full(error) else StoreError
                    told = f"{self.place} cannot be {done}: {self._explain(error)}. {safe()}".rstrip()
                    raise kind(told.removesuffix(".") if not safe() else told) from error
            # Not all at once when the server is back: each waits a little differently.
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, 2.0)
