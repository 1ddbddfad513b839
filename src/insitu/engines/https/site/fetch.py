"""A message is fetched chunk by chunk; what the site has already is not asked for, what broke off goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from insitu.core.errors import Refusal
from insitu.engines.https.http import Reply, Transport, parsed
from insitu.engines.https.site.cache import Cache
from insitu.engines.https.site.patience import Patience
from insitu.engines.https.wire import packing
from insitu.engines.https.wire.manifest import Manifest, checked, digest_of

ATTEMPTS = 5
"""How often a message is read while chunks of it get lost on this site's disk."""


class _Lost(Exception):
    """A chunk is no longer in the cache, or not what it was."""


class Fetcher:
    """Documents and trees from the coordinator. ``compute`` runs a function where it does not block."""

    def __init__(
        self, transport: Transport, cache: Cache, patience: Patience,
        compute: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:  # fmt: skip
        self._transport, self._cache, self._patience, self._compute = transport, cache, patience, compute
        self.bytes = 0
        """Bytes of chunks that were fetched so far."""

    async def document(self, digest: str) -> Any:
        """A document by its digest, which is checked. Raises Refusal BAD_DIGEST where it is another one."""

        async def ask() -> bytes:
            return (await self._transport.request("GET", f"/v1/documents/{digest}")).checked().body

        value = parsed(await self._patience.until(f"document {digest[:12]}", ask))
        if digest_of(value) != digest:
            raise Refusal("BAD_DIGEST", f"the coordinator gave another document than {digest}")
        return value

    async def manifest(self, digest: str, largest: int) -> Manifest:
        """A message's manifest."""
        return checked(await self.document(digest), largest, "message")

    async def tree(self, manifest: Manifest) -> Any:
        """The message itself. A chunk is compared with its digest when it comes, and when it is read again."""
        lengths = dict(manifest.chunks)
        for _ in range(ATTEMPTS):
            for digest, length in lengths.items():
                if not self._cache.has(digest):
                    self._cache.put(digest, await self._chunk(digest, length), lengths)
            try:
                return await self._compute(lambda: packing.unpack(manifest.plain(), self._read))
            except _Lost:  # damaged on this site's disk since: the cache has forgotten it now
                continue
        raise OSError(f"chunks of a message get lost as soon as they are written to this site's disk, {ATTEMPTS} times")

    def _read(self, digest: str) -> bytes:
        found = self._cache.get(digest)
        if found is None:
            raise _Lost(digest)
        return found

    async def _chunk(self, digest: str, length: int) -> bytes:
        """A chunk, whole; where the connection breaks it goes on where it was."""
        have = bytearray()

        async def go_on() -> None:
            headers = {"range": f"bytes={len(have)}-"} if have else {}
            path = f"/v1/chunks/{digest}"
            reply = await self._transport.request("GET", path, headers=headers, stream=True)
            if have and reply.status == 200:
                have.clear()
            await self._streamed(reply, have, digest, length)
            if len(have) < length:
                raise ConnectionError(f"chunk {digest[:12]} broke off at {len(have)} of {length} bytes")

        await self._patience.until(f"chunk {digest[:12]}", go_on, lambda: len(have))
        data = bytes(have)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Refusal("BAD_DIGEST", f"the coordinator gave other bytes than chunk {digest}")
        return data

    async def _streamed(self, reply: Reply, have: bytearray, digest: str, length: int) -> None:
        if reply.stream is None:
            reply.checked()
            raise Refusal("BROKEN", "the coordinator sent no bytes")
        try:
            async for some in reply.stream:
                have.extend(some)
                self.bytes += len(some)
                if len(have) > length:
                    raise Refusal("BAD_DIGEST", f"chunk {digest} is longer than the {length} bytes of its manifest")
        finally:
            if hasattr(reply.stream, "aclose"):  # the connection is given back now, not when it is collected
                await reply.stream.aclose()
