"""Whether bytes move on a connection, in either direction, however slowly.

A request may be under way for an hour, on a link of 1 kB/s, and a dead one for as long: what tells them apart is what
the other machine has acknowledged, which the kernel counts. What was handed to a socket says little, since a megabyte
of it may wait in buffers.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import struct
from typing import Any

import aiohttp

STEP = 5.0
"""Seconds between two looks, at most."""
_COUNTS = struct.Struct("=QQ")
_COUNTS_AT = 120  # bytes_acked and bytes_received in struct tcp_info, linux/tcp.h, since Linux 4.2


class Watch:
    """Looks after one request. ``transport`` is set when it has a connection."""

    transport: asyncio.Transport | None = None

    async def until(self, future: asyncio.Future[Any], timeout: float) -> None:
        """Waits until ``future`` is done. Raises TimeoutError where nothing has moved for ``timeout`` seconds."""
        clock = asyncio.get_running_loop().time
        seen, since = self._moved(), clock()
        while not future.done():
            await asyncio.wait({future}, timeout=min(STEP, timeout / 4))
            if future.done():
                return
            now = self._moved()
            if now != seen:
                seen, since = now, clock()
            elif clock() - since >= timeout:
                raise TimeoutError(f"no byte for {timeout:g} s")

    def _moved(self) -> tuple[int, ...]:
        transport = self.transport
        if transport is None or transport.is_closing():
            return ()
        return (transport.get_write_buffer_size(), *acknowledged(transport.get_extra_info("socket")))


def acknowledged(sock: Any) -> tuple[int, ...]:
    """(bytes that the other end has acknowledged, bytes that came from it); empty where the system does not count."""
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return ()
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTS_AT + _COUNTS.size)
    except OSError:  # closed meanwhile, or no TCP
        return ()
    return _COUNTS.unpack_from(told, _COUNTS_AT) if len(told) >= _COUNTS_AT + _COUNTS.size else ()


WATCH: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("insitu_watch", default=None)
"""The watch of the request that is being made."""


class Connector(aiohttp.TCPConnector):
    """aiohttp's, which tells the watch of a request which connection it has got."""

    async def connect(self, *arguments: Any, **named: Any) -> Any:
        """As aiohttp's."""
        connection = await super().connect(*arguments, **named)
        watch = WATCH.get()
        if watch is not None:
            watch.transport = connection.transport
        return connection
