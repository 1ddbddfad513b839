"""The run store in a PostgreSQL database, which several machines can reach."""

from __future__ import annotations

from datetime import timedelta

from insitu.store.database.postgres import PostgresDatabase
from insitu.store.sql import Fence, SqlStore


class PostgresStore(SqlStore):
    """Runs at ``url`` (``postgresql://user@host/database``); see ``SqlStore`` for what it promises.

    A transaction is tried again for a minute where the server is away, restarts, or another one was in the way.
    """

    def __init__(self, url: str, *, behind: timedelta = timedelta(seconds=1), fence: Fence | None = None) -> None:
        super().__init__(PostgresDatabase(url, "store"), behind=behind, fence=fence)
