"""The ledger in a PostgreSQL database, where several coordinators can stand by for one that leads."""

from __future__ import annotations

from insitu.store.database.postgres import PostgresDatabase
from insitu.store.ledger.sql import SqlLedger


class PostgresLedger(SqlLedger):
    """At ``url`` (``postgresql://user@host/database``), whose tables are made where they are not there."""

    def __init__(self, url: str) -> None:
        super().__init__(PostgresDatabase(url, "ledger"))
