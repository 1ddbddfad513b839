"""What the main process and a worker say to each other, and how a connection is handed over.

A frame is the length of a JSON table, that of the bytes behind it, the number of the request that it belongs to (0:
none), the table, the bytes. The table's ``what`` says what it is; `front` and `relayed` know what that means.

Whoever sends many bytes sends a piece and waits until the other end asks for the next one. So neither end ever holds
more than a piece of each request, and one slow caller holds up nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from insitu.core.errors import BlobError, DiskFull, Refusal, StoreError
from insitu.engines.https.http import Gone

log = logging.getLogger("insitu.https")

PIECE = 256 * 2**10
"""Bytes of a body that are in one frame."""
_HEAD = struct.Struct("!IIQ")
_ADDRESS = 64

Heard = Callable[[str, int, dict[str, Any], bytes], None]
"""Told of each frame: what, the request's number, the table, the bytes."""


class Line(asyncio.Protocol):
    """One end. ``lost`` is called once when the other end is gone; what is told after that goes nowhere."""

    def __init__(self, heard: Heard, lost: Callable[[], None]) -> None:
        self._heard, self._lost = heard, lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def on(cls, sock: socket.socket, heard: Heard, lost: Callable[[], None]) -> Line:
        """A line over one end of a socket pair."""
        sock.setblocking(False)
        made = await asyncio.get_running_loop().create_unix_connection(lambda: cls(heard, lost), sock=sock)
        return made[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self._lost()

    def tell(self, what: str, number: int = 0, data: bytes | memoryview = b"", **told: Any) -> None:
        """Sends a frame, without waiting."""
        if self._transport is None or self._transport.is_closing():
            return
        table = json.dumps({"what": what, **told}, separators=(",", ":")).encode()
        self._transport.write(_HEAD.pack(len(table), len(data), number) + table)
        if data:
            self._transport.write(data)

    def close(self) -> None:
        """Ends it, after what was told."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at, end = 0, len(self._buffer)
        while end - at >= _HEAD.size:
            table, length, number = _HEAD.unpack_from(self._buffer, at)
            begins = at + _HEAD.size + table
            if end < begins + length:
                break
            told = json.loads(self._buffer[at + _HEAD.size : begins])
            piece = bytes(memoryview(self._buffer)[begins : begins + length]) if length else b""
            at = begins + length
            try:
                self._heard(told.pop("what"), number, told, piece)
            except Exception:  # one request's trouble is not that of the others
                log.exception("a frame of another process could not be read")
        if at:
            del self._buffer[:at]


# ------------------------------------------------------------ connections


def hand_over(way: socket.socket, connection: socket.socket, address: str) -> bool:
    """Sends an accepted connection with its caller's address; whether there was room for it, and somebody to take it.

    ``way`` is one end of a pair of datagram sockets, and does not block.
    """
    try:
        socket.send_fds(way, [address.encode()[:_ADDRESS]], [connection.fileno()])
    except OSError:
        return False
    return True


def handed(way: socket.socket) -> tuple[socket.socket | None, str] | None:
    """The next connection; None: no more now, (None, address): there was no file descriptor for it."""
    try:
        address, descriptors, _, _ = socket.recv_fds(way, _ADDRESS, 1)
    except (BlockingIOError, InterruptedError):
        return None
    return (socket.socket(fileno=descriptors[0]) if descriptors else None), address.decode()


# ------------------------------------------------------------ errors


def words(error: BaseException) -> dict[str, Any]:
    """An error for the other process."""
    if isinstance(error, Refusal):
        return {"error": "refusal", "code": error.code, "text": str(error), "retry": error.retry_after}
    named = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "store")
    return {"error": named, "text": str(error) or type(error).__name__}


def error_of(told: dict[str, Any]) -> Exception:
    """The error that the other process had."""
    if told["error"] == "refusal":
        return Refusal(told["code"], told["text"], told["retry"])
    return _KINDS[told["error"]](told["text"])


_KINDS: dict[str, type[Exception]] = {"gone": Gone, "full": DiskFull, "blob": BlobError, "store": StoreError}


def close_all(*sockets: socket.socket) -> None:
    """Closes them, whatever state they are in."""
    for sock in sockets:
        with suppress(OSError):
            sock.close()
