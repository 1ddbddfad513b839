"""The bytes of a chunk on their way from a connection into the blobs, in whichever process has the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from insitu.core import failpoints
from insitu.core.errors import BlobError, Refusal, StoreError
from insitu.core.federation import Blobs, Part
from insitu.engines.https.http import Gone, Upload

PIECE = 256 * 2**10
"""Bytes that are written at once."""
Disk = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function that waits for a disk, off the loop."""


async def take(
    blobs: Blobs, disk: Disk, body: AsyncIterator[bytes] | None, upload: Upload, stop: asyncio.Event,
    count: Callable[[int], None],
) -> int:  # fmt: skip
    """Writes what comes, and keeps it even where the rest does not come; how many bytes are there, all if it is whole.

    ``count`` is told of bytes before they are written, and may refuse them. Raises Refusal BAD_OFFSET, TOO_LARGE or
    BAD_DIGEST, Gone where the caller is gone or ``stop`` is set, StoreError.
    """
    part: Part = await disk(lambda: blobs.part(upload.owner, upload.digest, upload.total))
    ended = False
    try:
        if part.offset != upload.offset:
            text = f"{part.offset} bytes of chunk {upload.digest} are there, not {upload.offset}"
            raise Refusal("BAD_OFFSET", text)
        if body is not None:
            await _write(body, part, stop, count)
        if part.offset == upload.total:
            failpoints.hit("chunk.before_finish")
            await _finished(part, disk)
            ended = True
        return part.offset
    finally:
        if not ended:
            with suppress(StoreError):  # the reason why it ended is the one to tell
                await asyncio.shield(asyncio.ensure_future(_kept(part, disk)))


async def _write(body: AsyncIterator[bytes], part: Part, stop: asyncio.Event, count: Callable[[int], None]) -> None:
    async for data in body:
        if stop.is_set():
            raise Gone("the same chunk is coming by another connection")
        count(len(data))
        view = memoryview(data)
        try:
            for at in range(0, len(data), PIECE):
                part.write(view[at : at + PIECE])
        except BlobError as error:
            raise Refusal("TOO_LARGE", str(error)) from error
        failpoints.hit("chunk.written")


async def _finished(part: Part, disk: Disk) -> None:
    try:
        await disk(part.finish)
    except BlobError as error:
        raise Refusal("BAD_DIGEST", str(error)) from error
    except StoreError:
        with suppress(StoreError):  # what could not be synced once is not to be relied on: it is sent anew
            await disk(part.abandon)
        raise


async def _kept(part: Part, disk: Disk) -> None:
    await disk(part.suspend)
