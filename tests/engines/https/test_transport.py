"""A site's way to its coordinator: addresses in turn, proxies, slow links, and errors that say what to look at."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time

import pytest
from ports import DAY, Federation, other_authority, serving

from insitu.core.errors import ConfigError
from insitu.engines.https.authority import Authority
from insitu.engines.https.serve.tls import server_context
from insitu.engines.https.shown import proxy_for
from insitu.engines.https.transport import HttpsTransport


@pytest.fixture
def federation(tmp_path, monkeypatch):
    for name in (
        "HTTPS_PROXY",
        "https_proxy",
        "NO_PROXY",
        "no_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    return Federation(tmp_path)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@contextlib.asynccontextmanager
async def member(federation, *urls, files=None, **more):
    transport = HttpsTransport(urls, *(files or federation.member("berlin")), federation.authority.bundle, **more)
    try:
        yield transport
    finally:
        await transport.close()


def url(port, host="localhost"):
    return f"https://{host}:{port.at}"


@contextlib.asynccontextmanager
async def listening(handle, tls=None):
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def closing(writer):
    writer.transport.abort()


async def pump(reader, writer, rate=None):
    with contextlib.suppress(OSError):
        while data := await reader.read(1024 if rate else 65536):
            writer.write(data)
            await writer.drain()
            if rate:
                await asyncio.sleep(len(data) / rate)
        writer.close()


class Proxy:
    """An HTTP proxy that opens tunnels, or does with them what it is told to."""

    def __init__(self, status="200 OK", to=None, rate=None):
        self.seen, self.status, self.to, self.rate = [], status, to, rate

    async def __call__(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return closing(writer)
        self.seen.append(head)
        writer.write(f"HTTP/1.1 {self.status}\r\n\r\n".encode())
        if not self.status.startswith("200"):
            await writer.drain()
            return writer.close()
        _, _, number = head.split()[1].rpartition(":")
        there, back = await asyncio.open_connection("127.0.0.1", self.to or int(number))
        await asyncio.gather(pump(reader, back, self.rate), pump(there, writer))
        for end in (back, writer):
            closing(end)


async def all_of(request):
    async for _ in (await request).stream or pieces():
        pass


async def pieces(*parts):
    for part in parts:
        yield part


def test_a_request_and_its_answer(federation):
    async def ask():
        async with serving(federation) as port, member(federation, url(port)) as transport:
            who = await transport.request("GET", "/v1/who")
            sent = await transport.request(
                "PUT", "/v1/chunks/a", body=pieces(b"x" * 70000, b"y" * 30000), length=100000
            )
            large = await transport.request("GET", "/v1/large/5000000", stream=True)
            got = sum([len(piece) async for piece in large.stream])
            refused = await transport.request("GET", "/v1/none")
            return who.value(), sent.value(), got, refused.status, port.counts["accepted"]

    assert run(ask()) == ({"name": "berlin", "role": "site"}, {"bytes": 100000}, 5_000_000, 404, 1)


def test_addresses_are_tried_in_turn_and_the_one_that_answered_is_remembered(federation):
    async def ask():
        async with serving(federation) as port, member(federation, "https://localhost:1", url(port)) as transport:
            first = await transport.request("GET", "/v1/who")
            began = transport._first
            async with member(federation, "https://localhost:1", "https://localhost:2") as lost:
                with pytest.raises(ConnectionError, match=r"localhost:1.*localhost:2"):
                    await lost.request("GET", "/v1/who")
            return first.status, began

    assert run(ask()) == (200, 1)


def test_a_name_that_is_not_there_is_an_error_of_the_connection(federation):
    async def ask():
        async with member(federation, "https://nowhere.invalid:8443") as transport:
            with pytest.raises(ConnectionError, match=r"nowhere\.invalid"):
                await transport.request("GET", "/v1/who")

    run(ask())


def shown_by(authority):
    return server_context(authority.chain, authority.key, authority.bundle)


@pytest.mark.parametrize("kind", ["inspected", "expired", "not yet valid", "other host"])
def test_a_server_that_is_not_to_be_trusted_is_told_apart(federation, tmp_path, kind):
    files = federation.member("berlin")
    if kind == "inspected":
        shown, said = other_authority(tmp_path), r"issued by '.*authority of test.*proxy in between"
    elif kind == "other host":
        federation.authority.certify_coordinator(["coordinator.example"])
        shown, said = federation.authority, r"it is not for 'localhost'"
    else:
        then = time.time() + (3 if kind == "not yet valid" else -400) * DAY
        later = Authority(federation.authority.folder, clock=lambda: then)
        later.certify_coordinator(["localhost"])
        shown, said = federation.authority, r"this machine's clock says 20.*valid from 20.*set the clock"
    heard = []

    async def handle(reader, writer):
        with contextlib.suppress(OSError):
            heard.append(await reader.read(100))
        closing(writer)

    async def ask():
        async with (
            listening(handle, shown_by(shown)) as number,
            member(federation, f"https://localhost:{number}", files=files) as transport,
        ):
            with pytest.raises(ConnectionError, match=said):
                await transport.request("GET", "/v1/who")

    run(ask())
    assert not any(heard)  # nothing was said to it


@pytest.mark.parametrize("shift", [3 * DAY, -400 * DAY])
def test_a_certificate_of_ones_own_that_is_refused_names_the_clock(federation, shift):
    files = federation.member("berlin", now=time.time() + shift)

    async def ask():
        async with serving(federation) as port, member(federation, url(port), files=files) as transport:
            with pytest.raises(
                ConnectionError, match=r"refused .*berlin\.pem .*this machine's clock says 20.*valid from 20"
            ):
                await transport.request("GET", "/v1/who")

    run(ask())


def test_tls_1_2_is_not_spoken(federation):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(federation.authority.chain, federation.authority.key)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2

    async def ask():
        async with (
            listening(lambda r, w: closing(w), tls) as number,
            member(federation, f"https://localhost:{number}") as transport,
        ):
            with pytest.raises(ConnectionError, match=r"TLS failed|cut off in the handshake"):
                await transport.request("GET", "/v1/who")

    run(ask())


def test_files_that_do_not_fit_are_named(federation, tmp_path):
    certificate, _ = federation.member("berlin")
    _, key = federation.member("paris")
    with pytest.raises(ConfigError, match=r"berlin\.pem.*paris\.key"):
        HttpsTransport(["https://x"], certificate, key, federation.authority.bundle)
    with pytest.raises(ConfigError, match=r"nothing\.pem"):
        HttpsTransport(["https://x"], None, None, tmp_path / "nothing.pem")
    with pytest.raises(ConfigError, match="no address"):
        HttpsTransport([], None, None, federation.authority.bundle)


@pytest.mark.parametrize("by", ["setting", "environment"])
def test_a_proxy_carries_the_tunnel_and_sees_nothing_of_it(federation, monkeypatch, by):
    proxy = Proxy()

    async def ask():
        async with serving(federation) as port, listening(proxy) as number:
            where = f"http://user:p%20w@127.0.0.1:{number}"
            if by == "environment":
                monkeypatch.setenv("HTTPS_PROXY", where)
            async with member(federation, url(port), proxy=where if by == "setting" else None) as transport:
                found = await transport.request("GET", "/v1/who")
            if by == "environment":
                monkeypatch.setenv("NO_PROXY", "localhost")
                async with member(federation, url(port)) as transport:
                    await transport.request("GET", "/v1/who")
            return found.value(), port.at

    found, at = run(ask())
    assert found == {"name": "berlin", "role": "site"}
    (head,) = proxy.seen
    assert head.startswith(f"CONNECT localhost:{at} HTTP/1.1\r\n")
    assert "Basic dXNlcjpwIHc=" in head


def test_a_proxy_that_refuses_is_named(federation):
    async def ask():
        async with (
            listening(Proxy("403 Not for you")) as number,
            member(federation, "https://localhost:1", proxy=f"http://127.0.0.1:{number}") as transport,
        ):
            with pytest.raises(ConnectionError, match=r"proxy 127\.0\.0\.1 does not let localhost through: 403"):
                await transport.request("GET", "/v1/who")

    run(ask())


def test_a_proxy_that_opens_tls_is_named_by_its_issuer(federation, tmp_path):
    inspecting = other_authority(tmp_path)

    async def ask():
        async with (
            listening(lambda r, w: closing(w), shown_by(inspecting)) as between,
            listening(Proxy(to=between)) as number,
        ):
            proxy = f"http://127.0.0.1:{number}"
            async with member(federation, "https://localhost:1", proxy=proxy) as transport:
                with pytest.raises(ConnectionError, match=r"issued by .*not this federation's.*opens TLS"):
                    await transport.request("GET", "/v1/who")

    run(ask())


def test_proxies_that_are_not_spoken(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_for("https://x") is None
    assert proxy_for("https://x", "proxy:3128") == "http://proxy:3128"
    for odd in ("https://proxy:1", "socks5://proxy:1"):
        with pytest.raises(ConfigError, match="http://proxy:3128"):
            proxy_for("https://x", odd)


def test_a_slow_link_is_no_dead_one(federation):
    """100 kB at 50 kB/s, through a proxy with small buffers: longer than the timeout, and never idle for it."""

    async def ask():
        small = socket.create_server(("127.0.0.1", 0))
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with serving(federation) as port:
            proxy = await asyncio.start_server(Proxy(rate=50_000), sock=small, limit=2048)
            async with member(federation, url(port), proxy=f"http://127.0.0.1:{small.getsockname()[1]}") as transport:
                began = time.monotonic()
                sent = await transport.request("PUT", "/v1/chunks/a", body=b"x" * 100_000, length=100_000, timeout=1.0)
                took = time.monotonic() - began
            proxy.close()
            await proxy.wait_closed()
            return sent.value(), took

    sent, took = run(ask())
    assert sent == {"bytes": 100_000}
    assert took > 1.5


@pytest.mark.parametrize("body", [None, b"x" * 30_000_000])
def test_a_dead_link_is_noticed(federation, body):
    """It takes the connection, and then nothing: with nothing to send, and with more than all buffers hold."""

    async def ask():
        async with serving(federation) as port:
            stopped = asyncio.Event()

            async def handle(reader, writer):  # a tunnel that stops to carry anything after the handshake
                await reader.readuntil(b"\r\n\r\n")
                there, back = await asyncio.open_connection("127.0.0.1", port.at)
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                returning = asyncio.create_task(pump(there, writer))
                for _ in range(2):
                    back.write(await reader.read(1500))
                writer.transport.pause_reading()
                await stopped.wait()
                returning.cancel()
                closing(back)
                closing(writer)

            async with listening(handle) as number:
                async with member(federation, url(port), proxy=f"http://127.0.0.1:{number}") as transport:
                    began = time.monotonic()
                    method, path = ("GET", "/v1/wait") if body is None else ("PUT", "/v1/chunks/a")
                    with pytest.raises(TimeoutError, match=r"no byte for 0\.6 s"):
                        await transport.request(method, path, body=body, length=body and len(body), timeout=0.6)
                    took = time.monotonic() - began
                stopped.set()
                await asyncio.sleep(0.05)
            return took

    assert 0.5 < run(ask()) < 5.0


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off_or_stops_is_no_answer(federation, stream):
    async def half(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 500)
        await writer.drain()
        if not federation.members:
            await asyncio.sleep(5)
        closing(writer)

    async def ask(kind, timeout):
        async with (
            listening(half, shown_by(federation.authority)) as number,
            member(federation, f"https://localhost:{number}") as transport,
        ):
            if kind is TimeoutError:
                federation.members.clear()
            with pytest.raises(kind):
                await all_of(transport.request("GET", "/v1/who", stream=stream, timeout=timeout))

    run(ask(ConnectionError, 5.0))
    run(ask(TimeoutError, 0.5))


def test_a_wall_of_json_is_not_swallowed(federation):
    async def endless(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                writer.write(b" " * 100_000)
                await writer.drain()
        closing(writer)

    async def ask():
        async with (
            listening(endless, shown_by(federation.authority)) as number,
            member(federation, f"https://localhost:{number}") as transport,
        ):
            with pytest.raises(ConnectionError, match="more than"):
                await transport.request("GET", "/v1/who")

    run(ask())


def test_an_answer_of_something_else_than_a_coordinator(federation):
    async def page(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b"<html>Please log in</html>"
        writer.write(
            b"HTTP/1.1 302 Found\r\nlocation: https://portal/\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        writer.close()

    async def ask():
        async with (
            listening(page, shown_by(federation.authority)) as number,
            member(federation, f"https://localhost:{number}") as transport,
        ):
            return await transport.request("GET", "/v1/who")

    reply = run(ask())
    assert reply.status == 302  # a redirection is not followed
    assert "location" in reply.headers
    with pytest.raises(json.JSONDecodeError):
        json.loads(reply.body)
