"""One SQLite file: opened, recognised as ours or refused, and its errors said in words that help."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from insitu.core.errors import StoreError
from insitu.store import schema

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


def explain(error: DBAPIError) -> str:
    """What went wrong with the file, and the cure."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    cure = _CURES.get(code & 0xFF) if code is not None else None
    return f"{error.orig}: {cure or 'this is not expected: keep a copy of the file and report it'}"


class Database:
    """The file at ``path``, made with its folders if it is not there, and transactions on it.

    Raises StoreError for a file that is not ours or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _open(path)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Sees the moment of its first statement, whatever others write meanwhile."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            self._engine.dispose()
            raise StoreError(f"{self.path} cannot be read: {explain(error)}") from error

    @contextmanager
    def writing(self, safe: Callable[[], str]) -> Iterator[Connection]:
        """Holds the write lock, for which it waits its turn; all of it is written or nothing.

        ``safe`` says, for the StoreError where it fails, what the caller has lost by that and what not.
        """
        try:
            with self._engine.execution_options(writes=True).begin() as connection:
                yield connection
        except DBAPIError as error:
            self._engine.dispose()  # a connection that failed may hold on to the failure
            raise StoreError(f"{self.path} cannot be written: {explain(error)}. {safe()}") from error

    def close(self) -> None:
        """Lets go of the file; the next transaction opens it again."""
        self._engine.dispose()


def _open(path: Path) -> Engine:
    _make_folder(path)
    url = URL.create("sqlite", database=str(path.absolute()))
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    try:
        with engine.connect() as connection:
            ours = _recognise(connection, path)
        if not ours:
            _make_tables(engine, path)
        _write_ahead(engine)
    except DBAPIError as error:
        engine.dispose()
        raise StoreError(f"{path} cannot be opened: {explain(error)}") from error
    except StoreError:
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
    # FULL syncs every commit, so that it survives a power cut and not only the end of the process.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _recognise(connection: Connection, path: Path) -> bool:
    """True for a database of ours, False for an empty one. Only reads: nothing of a stranger's is changed."""
    application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    tables = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    if application == version == tables == 0:
        return False
    if application != schema.APPLICATION:
        raise StoreError(f"{path} is a SQLite database of another program: give another path")
    if version > schema.VERSION:
        raise StoreError(
            f"{path} has schema version {version}, newer than {schema.VERSION}: "
            "open it with the insitu that wrote it, or a newer one"
        )
    if 0 < version < schema.VERSION:
        raise StoreError(
            f"{path} has schema version {version}, and this insitu writes {schema.VERSION}: move it away, or give"
            " another path (an older insitu still reads it)"
        )
    if version != schema.VERSION or not tables:
        raise StoreError(f"{path} has schema version {version} and {tables} tables: restore a copy of it")
    return True


def _make_tables(engine: Engine, path: Path) -> None:
    with engine.execution_options(writes=True).begin() as connection:
        if _recognise(connection, path):  # another process was faster while we waited for the lock
            return
        schema.metadata.create_all(connection, checkfirst=False)
        connection.exec_driver_sql(schema.CLIENT_METRICS)
        connection.exec_driver_sql(f"PRAGMA application_id = {schema.APPLICATION}")
        connection.exec_driver_sql(f"PRAGMA user_version = {schema.VERSION}")


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
