"""From what a user writes to the thing: ``runs.db``, ``sqlite:///runs.db``, ``postgresql://…``, a folder, ``s3://…``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from insitu.core.errors import StoreError
from insitu.store.blobs.opened import open_blobs
from insitu.store.ledger.postgres import PostgresLedger
from insitu.store.ledger.sql import SqlLedger
from insitu.store.ledger.sqlite import SqliteLedger
from insitu.store.postgres import PostgresStore
from insitu.store.sql import SqlStore
from insitu.store.sqlite import SqliteStore

__all__ = ["AT_ONCE", "open_blobs", "open_ledger", "open_store"]

AT_ONCE = timedelta(0)


def open_ledger(place: str | Path) -> SqlLedger:
    """The ledger at a path or URL, made where it is not there."""
    if _postgres(place):
        return PostgresLedger(str(place))
    return SqliteLedger(_file(place))


def open_store(
    place: str | Path, *, ledger: SqlLedger | None = None, behind: timedelta = timedelta(seconds=1)
) -> SqlStore:
    """The runs at a path or URL, made where they are not there.

    With a ``ledger`` of the same database every write checks, in its own transaction, that the ledger still leads, and
    raises Fenced otherwise; a federation writes at once (``behind=AT_ONCE``).
    """
    fence = None if ledger is None else ledger.fence
    if _postgres(place):
        return PostgresStore(str(place), behind=behind, fence=fence)
    return SqliteStore(_file(place), behind=behind, fence=fence)


def _postgres(place: str | Path) -> bool:
    return isinstance(place, str) and place.startswith(("postgresql://", "postgresql+psycopg://", "postgres://"))


def _file(place: str | Path) -> Path:
    """The path that ``place`` is, or that a ``sqlite:///`` URL names."""
    if isinstance(place, Path) or "://" not in place:
        return Path(place)
    try:
        url = make_url(place)
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"{place!r} is no URL of a database: {error}") from error
    if url.get_backend_name() != "sqlite" or not url.database:
        raise StoreError(
            f"{url!r} is no database that insitu knows: give a file's path, sqlite:///PATH or postgresql://USER@HOST/NAME"
        )
    return Path(url.database)
