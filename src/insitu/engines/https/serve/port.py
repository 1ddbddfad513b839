"""The coordinator's port: accepts, shakes hands, counts, answers, and can stop without losing an upload."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web

from insitu.core.errors import Refusal
from insitu.engines.https.http import Answers, Gone, Response
from insitu.engines.https.serve import messages
from insitu.engines.https.serve.connection import Connection, Quiet
from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.listening import allowed, listen
from insitu.engines.https.serve.tls import Buffers, Handshake, Witness, described

log = logging.getLogger("insitu.https")

BURST = 64
"""Connections accepted before others get their turn."""
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Port:
    """Serves a `Table` over TLS.

    tls      makes the context from the certificate files; called again by `reload`
    sockets  listening sockets to use instead of ``host`` and ``port``; none at all where others accept for it
    """

    def __init__(
        self, table: Answers, tls: Callable[[], ssl.SSLContext], host: str = "0.0.0.0", port: int = 8443,
        limits: Limits | None = None, sockets: Sequence[socket.socket] | None = None,
    ) -> None:  # fmt: skip
        self.table, self.limits = table, limits or Limits()
        self._tls, self._host, self._port = tls, host, port
        self._witness, self._buffers = Witness(tls), Buffers()
        self._accepts = sockets is None or bool(sockets)
        self._listeners: list[socket.socket] = list(sockets or ())
        self._connections: dict[Any, Connection] = {}
        self._members: dict[str, list[Connection]] = {}
        self._strangers: Counter[str] = Counter()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._requests: set[asyncio.Task[Any]] = set()
        self._held = 0
        self._uploads = 0
        self._stopping = False
        self._spare: int | None = None
        self.give: Callable[[socket.socket, str], bool] = lambda sock, address: False
        """Gives an accepted connection to another process, where it takes any; False: it stays here."""
        self.parts: Callable[[], bool] = lambda: False
        """Asked with each answer: whether the connection ends with it, as another process should have the next one."""
        self.counts: Counter[str] = Counter()
        """For the metrics: connections accepted, refused by reason, handshakes failed, and so on."""

    async def start(self) -> None:
        """Listens. Raises OSError where the port is taken, and says so."""
        self.loop = asyncio.get_running_loop()
        self.note = Quiet(log.warning, self.loop.time)
        self._server = messages.Server(self._answer, **messages.handler_arguments(self.limits))
        self._most = min(self.limits.connections, allowed(self.limits.connections))
        if self._accepts and not self._listeners:
            self._listeners = listen(self._host, self._port)
        self._spare = os.open(os.devnull, os.O_RDONLY)
        for listener in self._listeners:
            listener.setblocking(False)
            self.loop.add_reader(listener.fileno(), self._accept, listener)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        return [listener.getsockname()[:2] for listener in self._listeners]

    @property
    def open(self) -> dict[str, int]:
        """How many connections, handshakes, requests and uploads there are now."""
        return {
            "connections": len(self._connections), "handshakes": len(self._handshakes),
            "requests": len(self._requests), "uploads": self._uploads,
        }  # fmt: skip

    @property
    def held(self) -> int:
        """Connections that were accepted and have not ended, whether they have shaken hands or not."""
        return self._held

    def reload(self) -> None:
        """Reads the certificates again, for new connections. Raises ConfigError, and goes on with the old ones."""
        self._witness = Witness(self._tls)

    def cut(self, serials: Collection[str]) -> int:
        """Ends all connections of these certificates at once, with their long polls and uploads; how many."""
        ended = [c for serial in serials for c in self._members.get(serial, ())]
        for connection in ended:
            connection.abort()
        return len(ended)

    async def stop(self, grace: float = 10.0) -> None:
        """Accepts nothing more, lets requests end for ``grace`` seconds, then cancels them and closes everything."""
        self._stopping = True
        for listener in self._listeners:
            self.loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners = []
        for handshake in list(self._handshakes):
            handshake.cancel()
        for connection in list(self._connections.values()):
            if not connection.busy and connection.transport is not None:
                connection.transport.close()
        if self._requests:
            await asyncio.wait(set(self._requests), timeout=grace)
        left = set(self._requests)
        for request in left:
            request.cancel()
        if left:
            log.warning("%d requests did not end within %g s and were cancelled", len(left), grace)
            await asyncio.wait(left, timeout=5.0)
        await self._server.shutdown(1.0)
        for connection in list(self._connections.values()):
            connection.abort()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        for _ in range(200):
            if not self._connections:
                break
            await asyncio.sleep(0.01)
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    # connections

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BURST):
            try:
                sock, where = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _NO_FILES:
                    raise
                self._shed(listener)
                return
            if not self.give(sock, str(where[0])):
                self.adopt(sock, str(where[0]))

    def adopt(self, sock: socket.socket, address: str) -> None:
        """Shakes hands with whoever is at the other end of an accepted connection; closes it where that is too many."""
        reason = self._refused(address)
        if reason:
            self.counts[f"refused {reason}"] += 1
            self.note(reason, f"a connection of {address} was refused: {reason}")
        if reason or self._stopping:
            sock.close()
            return
        self.counts["accepted"] += 1
        sock.setblocking(False)
        self._strangers[address] += 1
        self._held += 1
        task = self.loop.create_task(self._shake_hands(sock, address))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _refused(self, address: str) -> str:
        if self._held >= self._most:
            return "too many connections"
        if self._strangers[address] >= self.limits.strangers:
            return "too many connections without a certificate"
        return ""

    def _shed(self, listener: socket.socket) -> None:
        """No file descriptor is left: the spare one serves to turn callers away, instead of leaving them waiting."""
        self.counts["refused no file descriptors"] += 1
        self.note("files", "no file descriptor is left (ulimit -n): new connections are closed")
        if self._spare is None:
            return
        os.close(self._spare)
        self._spare = None
        with suppress(OSError):
            for _ in range(BURST):
                listener.accept()[0].close()
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)

    async def _shake_hands(self, sock: socket.socket, address: str) -> None:
        inner = self._server()
        connection = Connection(self, inner, address)
        tls = Handshake(self.loop, connection, self._witness, self._buffers, self.limits.handshake)
        try:
            await self.loop.connect_accepted_socket(lambda: tls, sock)
            await tls.ready
            if connection.transport is None:
                self.counts["handshakes cut off"] += 1
            else:
                tls.quieten()
        except OSError as error:  # SSLError is one
            self.counts["handshakes failed"] += 1
            reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
            kind = "certificate" if isinstance(error, ssl.SSLCertVerificationError) else "handshake"
            shown = described(tls.certificate()) if kind == "certificate" else ""
            self.note(kind, f"TLS with {address} failed: {reason or type(error).__name__}{shown and ': ' + shown}")
        finally:
            if connection.transport is None:  # it has not come so far that `left` will count it
                self._held -= 1
                self._forget_stranger(address)
                tls.close()

    def joined(self, connection: Connection) -> None:
        """A handshake is over."""
        self._connections[connection.inner] = connection
        if connection.peer is None:
            return
        self._forget_stranger(connection.address)
        own = self._members.setdefault(connection.peer.serial, [])
        own.append(connection)
        if len(own) <= self.limits.per_member:
            return
        self.counts["refused too many of one member"] += 1
        idle = [c for c in own[:-1] if not c.busy]
        if not idle:
            connection.surplus = True
            return
        gives_way = min(idle, key=lambda c: c.since)
        connection.surplus = gives_way.surplus
        own.remove(gives_way)
        gives_way.abort()

    def left(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.pop(connection.inner, None)
        self._held -= 1
        if connection.peer is None:
            self._forget_stranger(connection.address)
            return
        own = self._members.get(connection.peer.serial, [])
        if connection in own:
            own.remove(connection)
        if not own:
            self._members.pop(connection.peer.serial, None)

    def _forget_stranger(self, address: str) -> None:
        self._strangers[address] -= 1
        if self._strangers[address] <= 0:
            del self._strangers[address]

    # requests

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._connections.get(request.protocol)
        if connection is None:
            raise ConnectionResetError("the caller is gone")
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        connection.begin()
        try:
            response, close = await self._response(request, connection)
            close = close or connection.peer is None or self.parts()
            return await messages.send(request, response, close, self.limits)
        except Gone as error:
            self.note("gone", f"{request.method} of {connection.address}: {error}")
            connection.abort()
            raise ConnectionResetError(str(error)) from error
        finally:
            connection.end()
            self._requests.discard(task)

    async def _response(self, request: web.BaseRequest, connection: Connection) -> tuple[Response, bool]:
        """What to answer, and whether to close then."""
        peer = connection.peer
        if self._stopping:
            return Response.refused(Refusal("STOPPING", "the coordinator is stopping: come back", 5.0)), True
        if connection.surplus:
            text = f"there are {self.limits.per_member} busy connections of this certificate already"
            return Response.refused(Refusal("TOO_MANY", text, 5.0)), True
        try:
            told = messages.read(request, peer, connection.address, self.limits)
        except Refusal as refusal:
            self.counts[f"refused {refusal.code}"] += 1
            if peer is None:  # who has no certificate learns nothing else
                text = "this needs a certificate of this federation"
                return Response.refused(Refusal("NO_CERTIFICATE", text)), True
            return Response.refused(refusal), True
        if told.body is None or told.length is None or told.length <= messages.WHOLE:
            return await self.table.handle(told), False
        if self._uploads >= self.limits.uploads:
            text = f"{self._uploads} uploads are under way, and no more are taken at a time"
            return Response.refused(Refusal("BUSY", text, 2.0)), False
        self._uploads += 1
        try:
            return await self.table.handle(told), False
        finally:
            self._uploads -= 1
