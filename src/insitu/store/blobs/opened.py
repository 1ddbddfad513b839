"""From what a user writes to blobs: a folder, or ``s3://…``. Needs no database's libraries."""

from __future__ import annotations

from pathlib import Path

from insitu.core.federation import Blobs
from insitu.store.blobs.folder import FolderBlobs
from insitu.store.blobs.s3 import S3Blobs


def open_blobs(place: str | Path, *, spool: str | Path = "spool") -> Blobs:
    """The blobs in a folder, or at ``s3://BUCKET/PREFIX?endpoint=URL&region=NAME``: then parts arrive in ``spool``."""
    if isinstance(place, str) and "://" in place:
        return S3Blobs(place, spool)
    return FolderBlobs(place)
