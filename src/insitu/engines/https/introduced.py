"""Every request says which protocol and which insitu it comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from insitu.engines.https.http import Reply, Transport
from insitu.engines.https.wire.packing import PROTOCOL
from insitu.version import __version__

HEADERS = {"insitu-protocol": str(PROTOCOL), "insitu-version": __version__}


class Introduced:
    """A transport whose requests carry these headers."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None, body: bytes | AsyncIterator[bytes] | None = None,
        length: int | None = None, stream: bool = False, timeout: float = 60.0,
    ) -> Reply:  # fmt: skip
        """As :meth:`Transport.request`."""
        if length is None and isinstance(body, bytes):
            length = len(body)
        return await self._transport.request(
            method, path, query=query, headers={**HEADERS, **(headers or {})}, body=body, length=length, stream=stream,
            timeout=timeout,
        )  # fmt: skip

    async def close(self) -> None:
        """Ends the connection."""
        await self._transport.close()
