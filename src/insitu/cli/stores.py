"""Opening a store that is there already: a command that only reads must not leave an empty one behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from insitu.core.errors import ResumeError, StoreError

if TYPE_CHECKING:
    from insitu.store.sqlite import SqliteStore

DEFAULT = Path("runs/insitu.db")
LAST = "last"

StorePath = Annotated[Path, typer.Option("--store", help="The store's file.")]


def existing(path: Path) -> SqliteStore:
    """The store in this file. Raises StoreError where there is none."""
    if not path.is_file():
        raise StoreError(f"there is no store at {path}: run something first, or give --store FILE")
    from insitu.store.sqlite import SqliteStore

    return SqliteStore(path)


def full_id(store: SqliteStore, run: str) -> str:
    """The run's whole id; ``last`` is the newest. Raises ResumeError where there is no such run."""
    if run != LAST:
        return str(store.record(run)["id"])
    everything = store.runs()
    if not everything:
        raise ResumeError(f"{store.path} has no runs yet: run something first")
    return str(everything[0]["id"])
