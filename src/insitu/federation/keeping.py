"""Where a federation keeps things: its settings' addresses become a ledger, a store of runs, and blobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insitu.core.federation import Blobs
from insitu.federation.folder import Folder
from insitu.federation.settings import Settings


@dataclass(frozen=True)
class Kept:
    """What is durable: ``ledger`` and ``store`` in one database, under one leadership, and ``blobs``.

    ``folder`` is the federation's own: what lies in it without a name is not durable.
    """

    ledger: Any
    store: Any
    blobs: Blobs
    folder: Path

    def close(self) -> None:
        """Lets go of the files and connections."""
        self.store.close()
        self.ledger.close()


def opened(folder: Folder, settings: Settings) -> Kept:
    """Everything, opened; made where it is not there. Raises StoreError, ConfigError or MissingExtra."""
    from insitu.store.opened import AT_ONCE, open_blobs, open_store

    ledger = ledger_of(folder, settings)
    try:
        store = open_store(folder.place(settings.store.url), ledger=ledger, behind=AT_ONCE)
        return Kept(ledger, store, open_blobs(folder.place(settings.blobs.url), spool=folder.spool), folder.path)
    except BaseException:
        ledger.close()
        raise


def ledger_of(folder: Folder, settings: Settings) -> Any:
    """The ledger alone."""
    from insitu.store.opened import open_ledger

    return open_ledger(folder.place(settings.store.url))
