"""Where a federation keeps things: its settings' addresses become a ledger, a store of runs, and blobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from insitu.core.errors import ConfigError
from insitu.core.federation import Blobs
from insitu.federation.folder import Folder
from insitu.federation.settings import Settings

AT_ONCE = timedelta(0)
"""A committed round of a federation is on the disk before anybody is told of it."""


@dataclass(frozen=True)
class Kept:
    """What is durable: ``ledger`` and ``store`` in one database, under one leadership, and ``blobs``."""

    ledger: Any
    store: Any
    blobs: Blobs

    def close(self) -> None:
        """Lets go of the files and connections."""
        self.store.close()
        self.ledger.close()


def opened(folder: Folder, settings: Settings) -> Kept:
    """Everything, opened; made where it is not there. Raises StoreError, ConfigError or MissingExtra."""
    ledger = ledger_of(folder, settings)
    try:
        return Kept(ledger, _store(folder, settings, ledger), _blobs(folder, settings))
    except BaseException:
        ledger.close()
        raise


def ledger_of(folder: Folder, settings: Settings) -> Any:
    """The ledger alone."""
    if _postgres(settings):
        from insitu.store.ledger.postgres import PostgresLedger

        return PostgresLedger(settings.store.url)
    from insitu.store.ledger.sqlite import SqliteLedger

    return SqliteLedger(folder.path / settings.store.url)


def _store(folder: Folder, settings: Settings, ledger: Any) -> Any:
    if _postgres(settings):
        from insitu.store.postgres import PostgresStore

        return PostgresStore(settings.store.url, behind=AT_ONCE, fence=ledger.fence)
    from insitu.store.sqlite import SqliteStore

    return SqliteStore(folder.path / settings.store.url, behind=AT_ONCE, fence=ledger.fence)


def _blobs(folder: Folder, settings: Settings) -> Blobs:
    url = settings.blobs.url
    if url.startswith("s3://"):
        from insitu.store.blobs.bucket import BucketBlobs

        return BucketBlobs(url)
    from insitu.store.blobs.folder import FolderBlobs

    return FolderBlobs(folder.path / url)


def _postgres(settings: Settings) -> bool:
    kind, scheme, _ = settings.store.url.partition("://")
    if not scheme:
        return False
    if kind.partition("+")[0] in ("postgresql", "postgres"):
        return True
    raise ConfigError(
        f"federation.toml, [store] url = {settings.store.url!r}: give a file of the folder, or postgresql://…"
    )
