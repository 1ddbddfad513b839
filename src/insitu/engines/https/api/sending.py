"""The bytes of a chunk on their way from the blobs to a connection, in whichever process has the connection."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from insitu.core.errors import StoreError
from insitu.core.federation import Blobs
from insitu.engines.https.api.receiving import Disk
from insitu.engines.https.http import Gone, Stored

log = logging.getLogger("insitu.https")
PIECE = 2**20
"""Bytes that are read at once where a read is no request to a server: all sites ask for a new model at a time."""


async def taken(blobs: Blobs, disk: Disk, stored: Stored) -> bytes | AsyncIterator[bytes]:
    """An answer's body, whole where it is short. Raises StoreError where its beginning cannot be read."""
    if not blobs.near or stored.length <= PIECE:
        return await _read(blobs, disk, stored, 0, stored.length)
    return _pieces(blobs, disk, stored, await _read(blobs, disk, stored, 0, PIECE))


async def _pieces(blobs: Blobs, disk: Disk, stored: Stored, first: bytes) -> AsyncIterator[bytes]:
    yield first
    del first
    for at in range(PIECE, stored.length, PIECE):
        try:
            yield await _read(blobs, disk, stored, at, min(PIECE, stored.length - at))
        except StoreError as error:
            log.error("the rest of a chunk cannot be read: %s", error)
            raise Gone(f"chunk {stored.digest} broke off at {at} of {stored.length} bytes") from error


async def _read(blobs: Blobs, disk: Disk, stored: Stored, at: int, length: int) -> bytes:
    data: bytes = await disk(lambda: blobs.read(stored.digest, stored.offset + at, length))
    return data
