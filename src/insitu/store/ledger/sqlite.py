"""The ledger in one SQLite file, the same in which runs are kept or another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from insitu.store.database.sqlite import SqliteDatabase
from insitu.store.ledger.sql import SqlLedger


class SqliteLedger(SqlLedger):
    """At ``path``, made with its folders where it is not there; every transaction is synced to the disk.

    ``clock`` (seconds since 1970) stands for the database's own in a simulation whose time is its own.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(SqliteDatabase(Path(path), "ledger", clock))
