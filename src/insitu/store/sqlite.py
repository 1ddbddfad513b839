"""The embedded store: everything in one SQLite file, which needs no server."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from insitu.store.database.sqlite import SqliteDatabase
from insitu.store.sql import Fence, SqlStore


class SqliteStore(SqlStore):
    """Runs in one SQLite file, made with its folders where it is not there; see ``SqlStore`` for what it promises."""

    def __init__(
        self, path: str | Path, *, behind: timedelta = timedelta(seconds=1), fence: Fence | None = None
    ) -> None:
        self.path = Path(path)
        super().__init__(SqliteDatabase(self.path, "store"), behind=behind, fence=fence)
