"""A coordinator's port with real TLS on the loopback interface, certificates made for the test, and raw callers."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from cryptography import x509

from insitu.core.errors import Refusal
from insitu.core.federation import ROLES
from insitu.engines.https.api.table import Table
from insitu.engines.https.authority import Authority, certificates, files, keys
from insitu.engines.https.http import Peer, Response, Route
from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.port import Port
from insitu.engines.https.serve.tls import server_context

DAY = 86400.0


class Federation:
    """An authority in a folder, its members' certificates, and who of them counts."""

    def __init__(self, folder: Path, hosts=("localhost", "127.0.0.1")) -> None:
        self.folder = folder
        self.authority = Authority.make(folder / "authority", "test", hosts)
        self.members: dict[str, Peer] = {}
        self.revoked: set[str] = set()

    def member(self, name: str, role="site", now: float | None = None, called: str | None = None, authority=None):
        """(certificate, key) files of a member; ``called`` is the certificate's name, where it is another."""
        signer = authority or self.authority
        key = keys.new_key()
        before, signer.clock = signer.clock, (signer.clock if now is None else lambda: now)
        try:
            made = signer.sign(keys.request_for(key, "whatever"), called or name, role)
        finally:
            signer.clock = before
        self.members[certificates.serial_text(made)] = Peer(name, role, certificates.serial_text(made))
        return self.kept(name, certificates.pem(made), key)

    def kept(self, name: str, certificate: bytes, key) -> tuple[Path, Path]:
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        files.write(paths[0], certificate)
        files.write(paths[1], keys.private_text(key), mode=0o600)
        return paths

    def serial(self, name: str) -> str:
        return next(serial for serial, peer in self.members.items() if peer.name == name)

    def identify(self, serial: str, name: str) -> Peer:
        peer = self.members.get(serial)
        if peer is None or peer.name != name:
            raise Refusal("UNKNOWN_CERTIFICATE", "it is nobody's")
        if serial in self.revoked:
            raise Refusal("REVOKED", "it was revoked")
        return peer

    def server_tls(self) -> ssl.SSLContext:
        return server_context(self.authority.chain, self.authority.key, self.authority.bundle)

    def client_tls(self, files=None, authority: Path | None = None) -> ssl.SSLContext:
        """A plain caller's context, made by hand: it shares nothing with the transport that is tested elsewhere."""
        context = ssl.create_default_context(cafile=str(authority or self.authority.bundle))
        if files is not None:
            context.load_cert_chain(*files)
        return context


def routes(calls: list, hold: asyncio.Event | None = None) -> list[Route]:
    """Something to ask: who am I, an echo of bodies, a long poll, a large answer."""

    async def who(request):
        calls.append(("who", request.peer))
        return Response.json({"name": request.peer.name, "role": request.peer.role})

    async def take(request):
        got = 0
        try:
            async for piece in request.body or ():
                got += len(piece)
        finally:
            calls.append(("take", request.peer.name, got))
        return Response.json({"bytes": got})

    async def hashed(request):
        check = hashlib.sha256()
        async for piece in request.body or ():
            check.update(piece)
            await asyncio.sleep(0)  # others come in between
        return Response.json({"sha256": check.hexdigest()})

    async def table(request):
        return Response.json({"got": await request.table()})

    async def wait(request):
        calls.append(("wait", request.peer.name))
        await (hold or asyncio.Event()).wait()
        return Response.json({"waited": True})

    async def large(request):
        return Response(200, b"x" * (int(request.arguments["size"])))

    async def enrol(request):
        calls.append(("enrol", await request.value()))
        return Response.json({"enrolled": True})

    return [
        Route("GET", "/v1/who", ROLES, who),
        Route("PUT", "/v1/chunks/{digest}", ("site",), take),
        Route("PUT", "/v1/hashed", ("site",), hashed),
        Route("POST", "/v1/table", ROLES, table),
        Route("GET", "/v1/wait", ROLES, wait),
        Route("GET", "/v1/large/{size}", ROLES, large),
        Route("POST", "/v1/enrol", (), enrol),
    ]


@asynccontextmanager
async def serving(federation: Federation, limits: Limits | None = None, hold=None, calls=None, **more):
    """A port that serves `routes`; yields it with ``.at``, its port number."""
    table = Table(routes([] if calls is None else calls, hold), federation.identify)
    port = Port(table, federation.server_tls, "127.0.0.1", 0, limits, **more)
    await port.start()
    port.at = port.addresses[0][1]
    try:
        yield port
    finally:
        await port.stop(0.2)


class Caller:
    """A connection that sends what it is told to, byte for byte."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: Port, tls: ssl.SSLContext | None, host="localhost") -> Caller:
        return cls(*await asyncio.open_connection("127.0.0.1", port.at, ssl=tls, server_hostname=host if tls else None))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, seconds: float = 5.0) -> tuple[int, bytes]:
        """Status and body of the next answer; raises ConnectionError where the connection has ended."""
        async with asyncio.timeout(seconds):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                named = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                return int(lines[0].split()[1]), await self.reader.readexactly(int(named.get("content-length", "0")))
            except (asyncio.IncompleteReadError, ssl.SSLError) as error:
                raise ConnectionError(str(error)) from error

    async def get(self, path: str, method="GET", body: bytes | None = None) -> tuple[int, bytes]:
        length = f"content-length: {len(body)}\r\n" if body is not None else ""
        await self.send(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{length}\r\n".encode() + (body or b""))
        return await self.answer()

    async def ended(self, seconds: float = 5.0) -> bool:
        """Whether the other end closes it within that time."""
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except (OSError, ssl.SSLError):
            pass
        return True

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(OSError, ssl.SSLError):
            await self.writer.wait_closed()


async def asked(port: Port, tls: ssl.SSLContext, path="/v1/who", method="GET", body=None) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    caller = await Caller.to(port, tls)
    try:
        return await caller.get(path, method, body)
    finally:
        await caller.close()


def other_authority(folder: Path) -> Authority:
    """An authority that is not the federation's, with the same title."""
    return Authority.make(folder / f"other-{time.monotonic_ns()}", "test", ["localhost"])


def subject(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())
