"""One caller's connection: its clock and its name, around aiohttp's protocol, which knows HTTP."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from insitu.core.federation import ROLES
from insitu.engines.https.http import Peer

if TYPE_CHECKING:
    from insitu.engines.https.serve.port import Port


class Connection(asyncio.Protocol):
    """Hands bytes on, sees to it that headers come in time, and knows whether a request is in progress.

    peer    as the certificate says; None where none was shown
    surplus whether its owner has too many connections: it is answered TOO_MANY
    """

    def __init__(self, port: Port, inner: asyncio.Protocol, address: str) -> None:
        self.port, self.inner, self.address = port, inner, address
        self.peer: Peer | None = None
        self.surplus = False
        self.busy = 0
        self.since = port.loop.time()
        self.transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(self.port.limits.buffer, self.port.limits.buffer // 4)
        self.peer = peer_of(transport.get_extra_info("ssl_object"), self.address)
        self.port.joined(self)
        self._wait_for_headers()
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self.busy and self._timer is None:
            self._wait_for_headers()
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        self.port.left(self)
        self.inner.connection_lost(exc)  # type: ignore[arg-type]

    def begin(self) -> None:
        """A request's headers are there."""
        self.busy += 1
        self._stop_timer()

    def end(self) -> None:
        """Its answer is sent."""
        self.busy -= 1
        self.since = self.port.loop.time()

    def abort(self) -> None:
        """Ends it at once, with whatever is under way."""
        if self.transport is not None:
            self.transport.abort()

    def _wait_for_headers(self) -> None:
        self._timer = self.port.loop.call_later(self.port.limits.headers, self._too_slow)

    def _too_slow(self) -> None:
        self._timer = None
        if not self.busy:
            who = self.address if self.peer is None else f"{self.peer.name} at {self.address}"
            self.port.note("slow", f"{who} sent no whole request within {self.port.limits.headers:g} s: cut off")
            self.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def peer_of(tls: ssl.SSLObject | None, address: str) -> Peer | None:
    """Who a verified certificate names. None where there is none, or where it is none of ours."""
    told: Any = tls.getpeercert() if tls is not None else None
    if not told:
        return None
    subject = {key: value for part in told.get("subject", ()) for key, value in part}
    role = next((r for r in ROLES if r == subject.get("organizationName")), None)
    if role is None:  # the coordinator's own, say
        return Peer("", "viewer", "0", address)
    return Peer(str(subject.get("commonName", "")), role, f"{int(told['serialNumber'], 16):x}", address)


class Quiet:
    """Log lines of one kind, at most ``most`` a minute: a flood of connections must not become a flood of lines."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float], most: int = 30) -> None:
        self._write, self._clock, self._most = write, clock, most
        self._seen: dict[str, tuple[float, int]] = {}

    def __call__(self, kind: str, text: str) -> None:
        now = self._clock()
        since, count = self._seen.get(kind, (now, 0))
        if now - since >= 60.0:
            if count > self._most:
                self._write(f"{count - self._most} more lines like the last {kind!r} ones were left out")
            since, count = now, 0
        self._seen[kind] = (since, count + 1)
        if count < self._most:
            self._write(text)
