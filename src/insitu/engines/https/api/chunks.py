"""Chunks: those of messages to read, those of updates to write, from wherever they broke off."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from insitu.core import failpoints
from insitu.core.errors import BlobError, Refusal, StoreError
from insitu.core.federation import Part
from insitu.engines.https.api.numbers import whole_number
from insitu.engines.https.api.tasks import SITE, name_of
from insitu.engines.https.exchange import Exchange
from insitu.engines.https.http import Gone, Request, Response, Route
from insitu.engines.https.wire.manifest import is_digest
from insitu.engines.https.wire.packing import CHUNK

_RANGE = re.compile(r"bytes=(\d{1,12})-")
PIECE = 256 * 2**10
"""Bytes that are written at once."""


class Chunks:
    """The routes of chunks.

    disk     runs a function that waits for a disk, off the loop
    at_once  uploads that are taken at a time; others are told to come back
    """

    def __init__(
        self, exchange: Exchange, disk: Callable[[Callable[[], Any]], Awaitable[Any]], at_once: int = 64
    ) -> None:
        self._exchange, self._disk, self._at_once = exchange, disk, at_once
        self._bytes: dict[str, int] = {}
        self._coming: dict[tuple[str, str], asyncio.Event] = {}
        self.uploads = 0
        """Uploads in progress."""

    def routes(self) -> list[Route]:
        """What is answered here."""
        return [
            Route("GET", "/v1/chunks/{digest}", SITE, self.get, "a chunk of a message"),
            Route("PUT", "/v1/tasks/{task}/chunks/{digest}", SITE, self.put, "a chunk of an update, or the rest of it"),
        ]

    async def get(self, request: Request) -> Response:
        """A chunk, or what is behind a byte of it."""
        site, digest, exchange = name_of(request), request.arguments["digest"], self._exchange
        if not is_digest(digest) or not exchange.may_read(site, digest):
            raise Refusal("NOT_FOUND", f"no task of yours has a chunk {digest[:64]!r}")
        found = _RANGE.fullmatch(request.headers.get("range", ""))
        at = int(found[1]) if found else 0
        length = await self._disk(lambda: exchange.blobs.length(digest))
        if length is None:
            raise StoreError(f"the chunk {digest} of a message is lost: restore a copy of the blobs")
        if at > length:
            raise Refusal("BAD_OFFSET", f"chunk {digest} has {length} bytes, and you ask for those from {at} on")
        data: bytes = await self._disk(lambda: exchange.blobs.read(digest, at, length - at))
        exchange.counts["bytes_out"] += len(data)
        headers = {"content-type": "application/octet-stream"}
        if found:
            headers["content-range"] = f"bytes {at}-{max(at, length - 1)}/{length}"
        return Response(206 if found else 200, data, headers, len(data))

    async def put(self, request: Request) -> Response:
        """Takes a chunk's bytes from ``offset`` on, and keeps what has come even where the rest does not."""
        site, task, digest = name_of(request), request.arguments["task"], request.arguments["digest"]
        if not is_digest(digest):
            raise Refusal("BAD_REQUEST", "a chunk is called by its SHA-256, 64 hexadecimal digits")
        offset, total = whole_number(request, "offset", 0), whole_number(request, "length", 0)
        if not 0 < total <= CHUNK or offset > total:
            raise Refusal("TOO_LARGE", f"a chunk has 1 to {CHUNK} bytes, and this one {total} from {offset} on")
        if request.length is not None and request.length > total - offset:
            raise Refusal("TOO_LARGE", f"{request.length} bytes were announced, and {total - offset} are left of it")
        self._exchange.takes(site, task)
        if self._exchange.has(site, digest):
            return Response.json({"offset": total, "done": True})
        if self.uploads >= self._at_once:
            raise Refusal("BUSY", f"{self.uploads} uploads are in progress: come back in a moment", 2.0)
        self._count(task, 0)
        with self._exchange.arriving(site, task, digest) as whole:
            self.uploads += 1
            try:
                return await self._take(request, site, task, digest, offset, total, whole)
            finally:
                self.uploads -= 1

    async def _take(
        self, request: Request, site: str, task: str, digest: str, offset: int, total: int, whole: Callable[[], None]
    ) -> Response:
        await self._alone(site, digest)
        mine = self._coming[site, digest] = asyncio.Event()
        try:
            part: Part = await self._disk(lambda: self._exchange.blobs.part(site, digest, total))
            ended = False
            try:
                if part.offset != offset:
                    raise Refusal("BAD_OFFSET", f"{part.offset} bytes of chunk {digest} are there, not {offset}")
                await self._write(request, task, part, mine)
                if part.offset == total:
                    failpoints.hit("chunk.before_finish")
                    await self._finished(part)
                    ended = True
                    whole()
                    failpoints.hit("chunk.finished")
                    return Response.json({"offset": total, "done": True})
                return Response.json({"offset": part.offset, "done": False})
            finally:
                if not ended:
                    with suppress(StoreError):  # the reason why it ended is the one to tell
                        await asyncio.shield(asyncio.ensure_future(self._kept(part)))
        finally:
            if self._coming.get((site, digest)) is mine:
                del self._coming[site, digest]

    async def _write(self, request: Request, task: str, part: Part, mine: asyncio.Event) -> None:
        if request.body is None:
            return
        async for data in request.body:
            if mine.is_set():
                raise Gone("the same chunk is coming by another connection")
            self._count(task, len(data))
            try:
                for at in range(0, len(data), PIECE):
                    part.write(data[at : at + PIECE])
            except BlobError as error:
                raise Refusal("TOO_LARGE", str(error)) from error
            failpoints.hit("chunk.written")

    async def _finished(self, part: Part) -> None:
        try:
            await self._disk(part.finish)
        except BlobError as error:
            raise Refusal("BAD_DIGEST", str(error)) from error
        except StoreError:
            with suppress(StoreError):  # what could not be synced once is not to be relied on: it is sent anew
                await self._disk(part.abandon)
            raise

    async def _kept(self, part: Part) -> None:
        await self._disk(part.suspend)

    async def _alone(self, site: str, digest: str) -> None:
        """A site that sends a chunk anew has given up its other connection, whatever that still thinks of itself."""
        for _ in range(50):
            other = self._coming.get((site, digest))
            if other is None:
                return
            other.set()
            await asyncio.sleep(0.02)
        raise Refusal("BUSY", f"chunk {digest} is coming by another connection of yours", 1.0)

    def _count(self, task: str, more: int) -> None:
        """Nobody sends more for a task than an update may have, chunks that were sent twice included."""
        count = self._bytes[task] = self._bytes.get(task, 0) + more
        self._exchange.counts["bytes_in"] += more
        if count > 2 * self._exchange.largest + CHUNK:
            raise Refusal("TOO_LARGE", f"more than {2 * self._exchange.largest} bytes were sent for one task")
        while len(self._bytes) > 10_000:
            del self._bytes[next(iter(self._bytes))]
