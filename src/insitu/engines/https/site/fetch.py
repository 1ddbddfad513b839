"""A message is fetched chunk by chunk; what the site has already is not asked for, what broke off goes on."""

from __future__ import annotations

import hashlib
from typing import Any

from insitu.core.errors import Refusal
from insitu.engines.https.http import Transport, parsed
from insitu.engines.https.site.cache import Cache
from insitu.engines.https.site.patience import Patience
from insitu.engines.https.wire import packing
from insitu.engines.https.wire.manifest import Manifest, checked, digest_of


class Fetcher:
    """Documents and trees from the coordinator."""

    def __init__(self, transport: Transport, cache: Cache, patience: Patience) -> None:
        self._transport, self._cache, self._patience = transport, cache, patience
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
        """The message itself."""
        needed = {digest for digest, _ in manifest.chunks}
        for digest, length in manifest.chunks:
            if not self._cache.has(digest):
                self._cache.put(digest, await self._chunk(digest, length), needed)
        lost = [(digest, length) for digest, length in manifest.chunks if self._cache.get(digest) is None]
        for digest, length in lost:  # damaged on this site's disk since
            self._cache.put(digest, await self._chunk(digest, length), needed)
        return packing.unpack(manifest.plain(), self._read)

    def _read(self, digest: str) -> bytes:
        found = self._cache.get(digest)
        if found is None:
            raise Refusal("BAD_DIGEST", f"chunk {digest} was lost from this site's disk while it was being read")
        return found

    async def _chunk(self, digest: str, length: int) -> bytes:
        """A chunk, whole; where the connection breaks it goes on where it was."""
        have = bytearray()

        async def go_on() -> None:
            headers = {"range": f"bytes={len(have)}-"} if have else {}
            path = f"/v1/chunks/{digest}"
            reply = await self._transport.request("GET", path, headers=headers, stream=True)
            if reply.stream is None:
                reply.checked()
                raise Refusal("BROKEN", "the coordinator sent no bytes")
            if have and reply.status != 206:
                have.clear()
            async for some in reply.stream:
                have.extend(some)
                self.bytes += len(some)
                if len(have) > length:
                    raise Refusal("BAD_DIGEST", f"chunk {digest} is longer than the {length} bytes of its manifest")
            if len(have) < length:
                raise ConnectionError(f"chunk {digest[:12]} broke off at {len(have)} of {length} bytes")

        await self._patience.until(f"chunk {digest[:12]}", go_on)
        data = bytes(have)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Refusal("BAD_DIGEST", f"the coordinator gave other bytes than chunk {digest}")
        return data
