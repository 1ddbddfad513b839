"""Documents that calls name: messages' and updates' manifests, read back from the ledger."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from insitu.core.errors import StoreError
from insitu.core.federation import Call, Ledger
from insitu.engines.https.calls.values import Message

Durably = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function, which may block, off the loop."""


def named(call: Call) -> set[str]:
    """The documents that a call names: what its clients were told, and manifests of updates that are documents."""
    told = {str(e.data["manifest"]) for e in call.entries if e.kind == "accepted" and not e.data.get("text")}
    return told | set(call.message.values())


class Papers:
    """Raises StoreError for a document that is not there."""

    def __init__(self, ledger: Ledger, durably: Durably) -> None:
        self._ledger, self._durably = ledger, durably

    async def message(self, digest: str) -> Message:
        """What clients are told."""
        return Message.of(json.loads(await self.document(digest)))

    async def manifest(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of the update that an entry tells of: in the entry itself, or a document."""
        return dict(json.loads(data.get("text") or await self.document(str(data["manifest"]))))

    async def chunks(self, call: Call) -> set[str]:
        """All chunks of a call's messages and updates."""
        found = {digest for name in set(call.message.values()) for digest in (await self.message(name)).chunks}
        for entry in call.entries:
            if entry.kind == "accepted":
                found |= {digest for digest, _ in (await self.manifest(entry.data))["chunks"]}
        return found

    async def needed(self) -> set[str]:
        """All chunks of the calls of runs that are not finished."""
        runs = await self._durably(lambda: [r.run for r in self._ledger.submitted() if r.status != "finished"])
        found: set[str] = set()
        for run in runs:
            for call in await self._durably(partial(self._ledger.calls, run)):
                found |= await self.chunks(call)
        return found

    async def document(self, digest: str) -> str:
        """The document of this name."""
        text: str | None = await self._durably(lambda: self._ledger.document(digest))
        if text is None:
            raise StoreError(f"the ledger has lost the document {digest}: restore a copy of it")
        return text
