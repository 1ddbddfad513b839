"""One SQLite file: opened, recognised as ours or refused, and its errors said in words that help."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from insitu.core import failpoints
from insitu.core.errors import StoreError
from insitu.store import migrations, schema
from insitu.store.database.base import Database, T, Work

PAGE = 8 * 2**10
"""Bytes of a page of a new file: checkpoints are large, and each page of one is written twice. Pages of 16 kB would
save as much again, and make small files twice as large."""
BUSY_SECONDS = 30.0
"""How long to wait for another process that is writing."""

_CURES = {
    sqlite3.SQLITE_FULL: "free some space on its disk",
    sqlite3.SQLITE_IOERR: "check its disk: free space, quota, file size limit, hardware",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable, or give another path",
    sqlite3.SQLITE_PERM: "make the file and its folder writable, or give another path",
    sqlite3.SQLITE_CANTOPEN: "make the file and its folder writable, or give another path",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database: give another path, or move it away",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore a copy, or `sqlite3 FILE .recover` what is left of it",
    sqlite3.SQLITE_BUSY: f"another process has been writing for {BUSY_SECONDS:.0f} s: wait for it or end it",
}


class SqliteDatabase(Database):
    """The file at ``path``, made with its folders if it is not there; an older one is brought up to date.

    ``clock`` stands for SQLite's own in a simulation whose time is its own. Raises StoreError for a file that is not
    ours or cannot be used.
    """

    def __init__(self, path: Path, name: str, clock: Callable[[], float] | None = None) -> None:
        super().__init__(str(path), name)
        self._clock = clock
        self._engine = _open(path)

    def now(self, connection: Connection) -> float:
        if self._clock is not None:
            return self._clock()
        return float(connection.exec_driver_sql("SELECT (julianday('now') - 2440587.5) * 86400.0").scalar_one())

    def steady(self) -> float:
        return super().steady() if self._clock is None else self._clock()

    def close(self) -> None:
        self._engine.dispose()

    def _read(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            return work(connection)

    def _writer(self, work: Work[T]) -> Callable[[], T]:
        def attempt() -> T:
            # Holds the write lock from the start, for which it waits its turn.
            with self._engine.execution_options(writes=True).begin() as connection:
                result = work(connection)
                failpoints.hit(f"{self.name}.commit.before")
            failpoints.hit(f"{self.name}.commit.after")
            return result

        return attempt

    def _failed(self, error: DBAPIError) -> bool:
        self._engine.dispose()  # a connection that failed may hold on to the failure
        return False  # SQLite itself has waited for BUSY_SECONDS

    def _explain(self, error: DBAPIError) -> str:
        return explain(error)

    def _full(self, error: DBAPIError) -> bool:
        return _code(error) == sqlite3.SQLITE_FULL


def explain(error: DBAPIError) -> str:
    """What went wrong with the file, and the cure."""
    code = _code(error)
    cure = _CURES.get(code) if code is not None else None
    return f"{error.orig}: {cure or 'this is not expected: keep a copy of the file and report it'}"


def _code(error: DBAPIError) -> int | None:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _open(path: Path) -> Engine:
    _make_folder(path)
    url = URL.create("sqlite", database=str(path.absolute()))
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    try:
        with engine.connect() as connection:
            version = _recognise(connection, path)
        if version != schema.VERSION:
            _bring_up(engine, path)
        _write_ahead(engine)
    except DBAPIError as error:
        engine.dispose()
        raise StoreError(f"{path} cannot be opened: {explain(error)}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def _make_folder(path: Path) -> None:
    if path.name == ":memory:":
        raise StoreError(f"{path} would keep nothing: run without a store, or give a file's path")
    try:
        folder = path.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened: {error.strerror}: give another path") from error
    if folder:
        raise StoreError(f"{path} is a folder: name a file in it, such as {path / 'insitu.db'}")


def _on_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where _on_begin says, not where sqlite3 guesses
    connection.execute(f"PRAGMA page_size = {PAGE}")  # a file that is there already keeps its own
    # FULL syncs every commit, so that it survives a power cut and not only the end of the process.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _recognise(connection: Connection, path: Path) -> int:
    """The schema version of a database of ours, 0 for an empty one. Only reads: nothing of a stranger's is changed."""
    application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    tables = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    if application == version == tables == 0:
        return 0
    if application != schema.APPLICATION:
        raise StoreError(f"{path} is a SQLite database of another program: give another path")
    if version < 1 or not tables:
        raise StoreError(f"{path} has schema version {version} and {tables} tables: restore a copy of it")
    migrations.refuse(str(path), version)
    return int(version)


def _bring_up(engine: Engine, path: Path) -> None:
    """One transaction: whoever dies in it leaves the version that was there."""
    with engine.execution_options(writes=True).begin() as connection:
        version = _recognise(connection, path)  # another process may have been faster while we waited for the lock
        migrations.bring_up(connection, version)
        connection.exec_driver_sql(f"PRAGMA application_id = {schema.APPLICATION}")
        connection.exec_driver_sql(f"PRAGMA user_version = {schema.VERSION}")
        failpoints.hit("migration.commit.before")
    failpoints.hit("migration.commit.after")


def _write_ahead(engine: Engine) -> None:
    """Lets readers read while one process writes.

    The file remembers it, so it matters little if another process is in the way just now. Network file
    systems cannot do it: then SQLite keeps its rollback journal, as safe and a little slower.
    """
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise OperationalError("PRAGMA journal_mode = WAL", None, error) from error
    finally:
        raw.close()
