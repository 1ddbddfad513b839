"""Chunks: those of messages to read, those of updates to write, from wherever they broke off."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from insitu.core import failpoints
from insitu.core.errors import Refusal, StoreError
from insitu.engines.https.api.numbers import whole_number
from insitu.engines.https.api.receiving import Disk, take
from insitu.engines.https.api.sending import taken
from insitu.engines.https.api.tasks import SITE, name_of
from insitu.engines.https.exchange import Exchange
from insitu.engines.https.http import Request, Response, Route, Stored, Upload
from insitu.engines.https.wire.manifest import is_digest
from insitu.engines.https.wire.packing import CHUNK

_RANGE = re.compile(r"bytes=(\d{1,12})-")


class Chunks:
    """The routes of chunks.

    disk     runs a function that waits for a disk, off the loop
    at_once  uploads that are taken at a time; others are told to come back
    """

    def __init__(self, exchange: Exchange, disk: Disk, at_once: int = 64) -> None:
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
        headers = {"content-type": "application/octet-stream"}
        if found:
            headers["content-range"] = f"bytes {at}-{max(at, length - 1)}/{length}"
        stored = Stored(digest, at, length - at)
        body = stored if request.elsewhere else await taken(exchange.blobs, self._disk, stored)
        exchange.counts["bytes_out"] += length - at
        return Response(206 if found else 200, body, headers, length - at)

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
                return await self._take(request, Upload(site, digest, offset, total), task, whole)
            finally:
                self.uploads -= 1

    async def _take(self, request: Request, upload: Upload, task: str, whole: Callable[[], None]) -> Response:
        key = upload.owner, upload.digest
        await self._alone(*key)
        mine = self._coming[key] = asyncio.Event()
        count, blobs = lambda more: self._count(task, more), self._exchange.blobs
        try:
            if request.elsewhere is None:
                at = await take(blobs, self._disk, request.body, upload, mine, count)
            else:
                at = await request.elsewhere.take(upload, mine, count)
                if at == upload.total:
                    blobs.shown(upload.digest)
            if at == upload.total:
                whole()
                failpoints.hit("chunk.finished")
            return Response.json({"offset": at, "done": at == upload.total})
        finally:
            if self._coming.get(key) is mine:
                del self._coming[key]

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
