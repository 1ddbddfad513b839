"""One PostgreSQL database: transactions that outlive a server's restart, and are never done twice.

A write is SERIALIZABLE. Where the server refuses it (another transaction was in the way) or goes away, it is tried
again for a while. When the connection breaks at the COMMIT, nobody has said whether it happened: each write leaves its
own token in this process's row of ``writers``, and the next attempt looks there first, behind the row's lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Float,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    event,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from insitu.core import failpoints
from insitu.core.errors import MissingExtra, StoreError
from insitu.store import migrations, schema
from insitu.store.database.base import Database, T, Work
from insitu.store.ledger import tables

PATIENCE = 60.0
"""Seconds for which a server may be away before a transaction fails."""
OPENING = 10.0
"""The same while opening, when a wrong address is likelier than a restart."""
IDLE = 15.0
"""Seconds after which the server ends a transaction of a process that has stopped in the midst of it."""
FORGOTTEN = 30 * 86400.0
"""Seconds after which a process that has not written is taken for gone, and its row of ``writers`` removed."""

_own = MetaData()
meta = Table(
    "meta",
    _own,
    Column("key", Text, primary_key=True, comment="application, version: what SQLite has in its file's header"),
    Column("value", Text, nullable=False),
)
writers = Table(
    "writers",
    _own,
    Column("id", Text, primary_key=True, comment="a process's connection to these tables"),
    Column("last", Text, nullable=False, comment="the token of its last write that is whole"),
    Column("at", Float, nullable=False),
)

_PASSES = ("08", "40", "57P01", "57P02", "57P03", "57P05", "25P03", "25006", "53300", "55P03")
"""Codes (or their classes) of what may be gone a moment later: serialization, deadlock, restart, failover, locks."""
_NEVER = ("authentication failed", "does not exist", "no pg_hba.conf entry")
_CURES = {
    "53100": "free some space on the server's disk",
    "42501": "let the role of the URL make and write tables in this database",
    "25006": "the server only reads: name the one that writes",
    "57014": "the server has cancelled it: look at its statement_timeout",
}


class PostgresDatabase(Database):
    """The database at ``url``, whose tables are made or brought up to date. Raises StoreError where that cannot be."""

    patience = PATIENCE

    def __init__(self, url: str, name: str) -> None:
        address = _address(url)
        super().__init__(address.render_as_string(hide_password=True).replace("+psycopg", ""), name)
        self._me = uuid.uuid4().hex
        self._engine = _engine(address)
        try:
            self._patiently(self._bring_up, "opened", lambda: "", OPENING)
        except BaseException:
            self._engine.dispose()
            raise

    def now(self, connection: Connection) -> float:
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def close(self) -> None:
        self._engine.dispose()

    def _read(self, work: Work[T]) -> T:
        with self._connected() as connection:
            return work(connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True))

    def _writer(self, work: Work[T]) -> Callable[[], T]:
        token, results = uuid.uuid4().hex, []

        def attempt() -> T:
            with self._connected() as connection, connection.begin():
                if results and self._written(connection, token):
                    return results[-1]
                results.append(work(connection))
                self._note(connection, token)
                failpoints.hit(f"{self.name}.commit.before")
            failpoints.hit(f"{self.name}.commit.after")
            return results[-1]

        return attempt

    def _written(self, connection: Connection, token: str) -> bool:
        """Whether an attempt before this one has come through: behind its lock, if the server is still at it."""
        mine = select(writers.c.last).where(writers.c.id == self._me).with_for_update()
        return connection.scalar(mine) == token

    def _note(self, connection: Connection, token: str) -> None:
        values = {"last": token, "at": self.now(connection)}
        if not connection.execute(update(writers).where(writers.c.id == self._me).values(values)).rowcount:
            connection.execute(insert(writers), {"id": self._me, **values})

    def _connected(self) -> Connection:
        try:
            return self._engine.connect()
        except PoolTimeout as error:
            raise StoreError(f"{self.place}: too many transactions at once: try again") from error

    # ------------------------------------------------------------ what went wrong

    def _failed(self, error: DBAPIError) -> bool:
        code = _code(error)
        gone = error.connection_invalidated or code is None
        if gone:
            self._engine.dispose()
        if code is not None:
            return code.startswith(_PASSES)
        return not any(word in str(error.orig) for word in _NEVER) and _lost(error)

    def _explain(self, error: DBAPIError) -> str:
        said = " ".join(str(error.orig).split())
        cure = _CURES.get(_code(error) or "", "is it up, and the URL right?" if self._failed(error) else None)
        return f"{said}: {cure or 'check the URL, the role and the database that it names'}"

    def _full(self, error: DBAPIError) -> bool:
        return _code(error) == "53100"

    # ------------------------------------------------------------ tables

    def _bring_up(self) -> None:
        """One transaction, one process at a time: whoever dies in it leaves the version that was there."""
        with self._engine.connect() as connection:
            # READ COMMITTED, so that what another process made while we waited for the lock is seen.
            options = connection.execution_options(isolation_level="READ COMMITTED")
            with options.begin():
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": schema.APPLICATION})
                version = _recognise(connection, self.place)
                if version != schema.VERSION:
                    _own.create_all(connection)
                    migrations.bring_up(connection, version)
                    connection.execute(delete(meta))
                    rows = {"application": "insitu", "version": str(schema.VERSION)}
                    connection.execute(insert(meta), [{"key": key, "value": value} for key, value in rows.items()])
                    failpoints.hit("migration.commit.before")
                now = self.now(connection)
                connection.execute(delete(writers).where(writers.c.at < now - FORGOTTEN))
                # Here from the start: an attempt whose fate is unknown then always holds a row's lock.
                if connection.scalar(select(writers.c.id).where(writers.c.id == self._me)) is None:
                    connection.execute(insert(writers), {"id": self._me, "last": "", "at": now})
        failpoints.hit("migration.commit.after")


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"{url.rpartition('@')[2]!r} is no URL of a database: {error}") from error
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise MissingExtra("psycopg", "postgres", "a store in PostgreSQL") from error
    return address.set(drivername="postgresql+psycopg")


def _engine(address: URL) -> Engine:
    given = {"connect_timeout": 5, "application_name": "insitu", "keepalives_idle": 10, "keepalives_interval": 5}
    given |= {"keepalives_count": 3, "tcp_user_timeout": 20_000}
    engine = create_engine(
        address,
        isolation_level="SERIALIZABLE",
        connect_args={name: value for name, value in given.items() if name not in address.query},
        max_overflow=20,
    )
    event.listen(engine, "connect", _on_connect)
    return engine


def _on_connect(connection: Any, _: Any) -> None:
    before, connection.autocommit = connection.autocommit, True
    connection.execute(f"SET idle_in_transaction_session_timeout = {int(IDLE * 1000)}")
    connection.execute(f"SET lock_timeout = {int(2 * IDLE * 1000)}")
    connection.autocommit = before


def _recognise(connection: Connection, place: str) -> int:
    """The schema version of a database of ours, 0 where there is none of our tables. Only reads."""
    present = text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    there = set(connection.scalars(present))
    marks: dict[str, str] = {}
    if "meta" in there and _columns(connection) == {"key", "value"}:
        marks = {row.key: row.value for row in connection.execute(select(meta))}
    if marks.get("application") == "insitu" and marks.get("version", "").isdecimal():
        migrations.refuse(place, int(marks["version"]))
        return int(marks["version"])
    ours = {*schema.metadata.tables, *tables.metadata.tables, *_own.tables}
    if there & ours:
        names = ", ".join(sorted(there & ours))
        raise StoreError(f"{place} has tables of another program ({names}): give another database, or a schema in it")
    return 0


def _columns(connection: Connection) -> set[str]:
    columns = "SELECT column_name FROM information_schema.columns"
    return set(connection.scalars(text(f"{columns} WHERE table_name = 'meta' AND table_schema = current_schema()")))


def _code(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _lost(error: DBAPIError) -> bool:
    """Whether the connection is the trouble: it broke, or could not be made."""
    import psycopg

    return error.connection_invalidated or isinstance(error.orig, (psycopg.OperationalError, psycopg.InterfaceError))
