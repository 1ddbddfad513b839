"""An update on its way: only the chunks that are not there yet, each from where it broke off, then the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from insitu.core import failpoints
from insitu.core.errors import Refusal
from insitu.engines.https.http import Transport
from insitu.engines.https.site.outbox import Outbox
from insitu.engines.https.site.patience import Patience
from insitu.engines.https.site.told import table
from insitu.engines.https.wire.manifest import canonical, is_digest

AGAIN = ("MISSING_CHUNKS", "BAD_OFFSET", "BAD_DIGEST")
"""What is cured by asking once more which chunks are missing."""
ATTEMPTS = 20
"""How often the coordinator may say so of one update."""

MAX_ERROR = 500
"""Characters of an error that leave the site."""


class _Broke(Exception):
    """The connection broke while a chunk was sent: nobody here knows how much of it has arrived."""


class Sender:
    """Sends what is in the outbox."""

    def __init__(self, transport: Transport, outbox: Outbox, patience: Patience) -> None:
        self._transport, self._outbox, self._patience = transport, outbox, patience
        self.bytes = 0
        """Bytes of chunks that were sent so far."""

    async def update(self, task: str, manifest: Mapping[str, Any]) -> bool:
        """Until it is acknowledged; whether it had been before. Raises Refusal where it is not wanted any more."""
        body = canonical(manifest).encode()
        refused = broken = 0
        left = 2**62
        while True:
            try:
                missing = await self._missing(task, manifest)
                before, left = left, _left(manifest, missing)
                broken = broken if left >= before else 0  # pauses grow only where nothing arrives
                for digest, offset in missing:
                    await self._chunk(task, digest, offset)
                failpoints.hit("site.sent")
                told = await self._post(task, "update", body)
                failpoints.hit("site.acknowledged")
                return bool(told.get("duplicate"))
            except _Broke as error:
                broken += 1
                await self._patience.pause(f"update of task {task[:12]}", broken, str(error))
            except Refusal as refusal:
                refused += 1
                if refusal.code not in AGAIN or refused == ATTEMPTS:
                    raise

    async def failure(self, task: str, code: str, error: str) -> None:
        """Tells why there will be no update."""
        await self._post(task, "failure", canonical({"code": code, "error": error[:MAX_ERROR]}).encode())

    async def _missing(self, task: str, manifest: Mapping[str, Any]) -> list[tuple[str, int]]:
        told = await self._post(task, "missing", canonical({"chunks": manifest["chunks"]}).encode())
        lengths = dict(manifest["chunks"])
        missing = told.get("missing")
        if not isinstance(missing, list):
            raise Refusal("BAD_REQUEST", "the coordinator does not say which chunks it misses")
        found = []
        for one in missing:
            digest, offset = one if isinstance(one, list) and len(one) == 2 else (None, None)
            if not is_digest(digest) or type(offset) is not int or not 0 <= offset <= lengths.get(digest, -1):
                raise Refusal("BAD_REQUEST", "the coordinator misses chunks that are not of this update")
            found.append((str(digest), offset))
        return found

    async def _chunk(self, task: str, digest: str, offset: int) -> None:
        data = self._outbox.chunk(task, digest)[offset:]
        path = f"/v1/tasks/{task}/chunks/{digest}"
        query = {"offset": str(offset), "length": str(offset + len(data))}

        async def put() -> None:
            try:
                reply = await self._transport.request("PUT", path, query=query, body=data, length=len(data))
            except OSError as error:
                raise _Broke(f"chunk {digest[:12]} broke off: {error}") from error
            self.bytes += len(data)
            reply.checked()

        await self._patience.until(f"chunk {digest[:12]}", put)
        failpoints.hit("site.chunk")

    async def _post(self, task: str, what: str, body: bytes) -> dict[str, Any]:
        async def post() -> dict[str, Any]:
            path, headers = f"/v1/tasks/{task}/{what}", {"content-type": "application/json"}
            return table(await self._transport.request("POST", path, headers=headers, body=body))

        return await self._patience.until(f"{what} of task {task[:12]}", post)


def _left(manifest: Mapping[str, Any], missing: Sequence[tuple[str, int]]) -> int:
    """Bytes that are still to be sent."""
    lengths = dict(manifest["chunks"])
    return sum(lengths[digest] - offset for digest, offset in missing)
