"""A port whose connections real worker processes have, in front of the table of this process."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict

from ports import Federation, routes

from insitu.core.errors import Refusal
from insitu.engines.https.api.chunks import Chunks
from insitu.engines.https.api.table import Table
from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.port import Port
from insitu.engines.https.serve.workers.fleet import Fleet
from insitu.store.blobs.folder import FolderBlobs

CHUNK = bytes(range(256)) * 4096
"""A megabyte."""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Held:
    """What chunks ask of an exchange: site berlin has the task t and may read what is in ``messages``."""

    largest = 100 * 2**20

    def __init__(self, blobs):
        self.blobs, self.counts = blobs, Counter()
        self.messages, self.brought, self.arriving_now = set(), set(), Counter()

    def may_read(self, site, digest):
        return (site, digest) in self.messages

    def has(self, site, digest):
        return (site, digest) in self.brought and self.blobs.length(digest) is not None

    def takes(self, site, task):
        if (site, task) != ("berlin", "t"):
            raise Refusal("UNKNOWN_TASK", "it is not yours")

    @contextmanager
    def arriving(self, site, task, digest):
        self.arriving_now[digest] += 1
        try:
            yield lambda: self.brought.add((site, digest))
        finally:
            self.arriving_now[digest] -= 1


@asynccontextmanager
async def manned(federation: Federation, count=1, limits=None, hold=None, calls=None, ready=True, **told):
    """A port with ``count`` workers; yields it with ``.at``, ``.fleet``, ``.chunks``, ``.held`` and ``.loop``."""
    limits = limits or Limits()
    held = Held(FolderBlobs(federation.folder / "blobs"))
    chunks = Chunks(held, asyncio.to_thread, 8)
    echoes = [one for one in routes([] if calls is None else calls, hold) if one.path != "/v1/chunks/{digest}"]
    takes = [one for one in routes([] if calls is None else calls, hold) if one.path == "/v1/chunks/{digest}"]
    table = Table([*echoes, *takes, *chunks.routes()], federation.identify)
    authority = federation.authority
    words = {
        "limits": asdict(limits), "chain": str(authority.chain), "key": str(authority.key),
        "bundle": str(authority.bundle), "blobs": str(federation.folder / "blobs"), "spool": "spool", **told,
    }  # fmt: skip
    fleet = Fleet(table, count, "insitu.federation.worker", words)
    port = Port(table, federation.server_tls, "127.0.0.1", 0, limits)
    port.give, port.parts = fleet.give, fleet.parts
    await port.start()
    port.at, port.fleet, port.chunks, port.held_chunks = port.addresses[0][1], fleet, chunks, held
    fleet.start()
    try:
        if ready:
            await until(lambda: len(fleet.there) == count)
        yield port
    finally:
        await asyncio.gather(port.stop(0.2), fleet.stop(0.2))


async def until(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
