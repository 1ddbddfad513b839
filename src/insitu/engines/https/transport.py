"""Requests over TLS 1.3 with aiohttp, to whichever of a coordinator's addresses answers; by a proxy if one is set."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from cryptography import x509

from insitu.core.errors import ConfigError
from insitu.engines.https.authority.names import shown
from insitu.engines.https.http import HEADERS, MAX_JSON, Reply
from insitu.engines.https.moving import WATCH, Connector, Watch
from insitu.engines.https.shown import clock, distrusted, proxy_for, shown_chain

CONNECT = 15.0
"""Seconds for a connection, its handshake included."""
KEEP = 30.0
"""Seconds that an idle connection is kept: less than the middleboxes do that forget it."""
PIECE = 64 * 1024
"""Bytes of a body that are encrypted at a time."""
AWAY = ("NOT_LEADER", "STOPPING")
"""What a coordinator says that does not lead: the next address is tried."""


def client_context(authority: Path, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS of a member: only version 1.3, only this federation's authority. Raises ConfigError.

    Without ``certificate`` it is good for enrolment.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        named = f"{certificate}, {key} and {authority}" if certificate is not None else str(authority)
        raise ConfigError(f"{named} are no certificate, key and authority that fit together: {error}") from error
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    return context


class HttpsTransport:
    """A `Transport` to a coordinator at ``urls``, of which the one that answered last is asked first.

    Names are resolved anew for each connection, since a coordinator may move. ``HTTPS_PROXY`` and ``NO_PROXY`` are
    honoured unless ``proxy`` (``http://proxy:3128``) is given. An error of TLS is a ConnectionError that says what is
    wrong with whose certificate. Without ``certificate`` and ``key`` it is good for enrolment.
    """

    def __init__(
        self, urls: Sequence[str], certificate: Path | None, key: Path | None, authority: Path,
        proxy: str | None = None, *, connections: int = 8,
    ) -> None:  # fmt: skip
        if not urls:
            raise ConfigError('there is no address of a coordinator: give urls = ["https://host:8443"]')
        self.urls = list(urls)
        self._tls, self._connections = client_context(authority, certificate, key), connections
        self._certificate, self._proxy = certificate, proxy
        self._session: aiohttp.ClientSession | None = None
        self._first = 0

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] | None = None,
        length: int | None = None,
        stream: bool = False,
        timeout: float = 60.0,
    ) -> Reply:
        told = {**HEADERS, **(headers or {})}
        length = len(body) if isinstance(body, bytes) else length
        if length is not None:
            told["content-length"] = str(length)
        elif body is None and method != "GET":
            told["content-length"] = "0"
        problems: list[str] = []
        # A body that comes in pieces can be sent once only.
        tries = 1 if body is not None and not isinstance(body, bytes) else len(self.urls)
        for i in range(tries):
            place = (self._first + i) % len(self.urls)
            try:
                reply = await self._at(self.urls[place], method, path, query, told, body, stream, timeout)
            except OSError as error:
                problems.append(f"{self.urls[place]}: {error}")
                if tries == 1:
                    self._first = place + 1
                if i + 1 == tries:
                    kind = TimeoutError if isinstance(error, TimeoutError) else ConnectionError
                    raise kind("; ".join(problems)) from error
                continue
            self._first = place
            if reply.status == 503 and i + 1 < tries and _away(reply):
                problems.append(f"{self.urls[place]} does not lead")
                continue
            return reply
        raise ConnectionError("; ".join(problems))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _at(
        self, url: str, method: str, path: str, query: Mapping[str, str] | None, headers: Mapping[str, str],
        body: Any, stream: bool, timeout: float,
    ) -> Reply:  # fmt: skip
        host = urlsplit(url).hostname or ""
        proxy = proxy_for(url, self._proxy)
        try:
            response = await self._sent(
                timeout, method, url + path, params=dict(query or {}), headers=headers, data=_slices(body),
                allow_redirects=False, proxy=proxy,
            )  # fmt: skip
            if stream and response.status < 400:
                return Reply(response.status, _lower(response), b"", _pieces(response, timeout))
            async with response:
                return Reply(response.status, _lower(response), await _whole(response, timeout))
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"no connection within {CONNECT:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise ConnectionError(await self._distrusted(error.certificate_error, url, host, proxy)) from error
        except aiohttp.ClientConnectorSSLError as error:
            raise ConnectionError(f"TLS failed: {error.os_error}: is this a coordinator's port?") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise ConnectionError(f"the name {host} is not known here: {error.os_error}") from error
        except aiohttp.ClientConnectorError as error:
            told = getattr(error.os_error, "strerror", None) or str(error.os_error)
            place = f"the proxy {urlsplit(proxy).hostname}" if proxy is not None else host
            raise ConnectionError(f"no connection to {place}: {told or 'it was cut off in the handshake'}") from error
        except aiohttp.ClientHttpProxyError as error:
            via = urlsplit(proxy or "").hostname
            text = f"the proxy {via} does not let {host} through: {error.status} {shown(error.message)}"
            raise ConnectionError(text) from error
        except (aiohttp.ClientError, ssl.SSLError, asyncio.IncompleteReadError) as error:
            raise ConnectionError(self._refused(error)) from error

    async def _sent(self, timeout: float, method: str, url: str, **more: Any) -> aiohttp.ClientResponse:
        """The beginning of an answer. Raises TimeoutError where nothing moves, in either direction, for ``timeout``."""
        watch = Watch()
        WATCH.set(watch)
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT, sock_connect=CONNECT)
        asked = asyncio.ensure_future(self._opened().request(method, url, timeout=limits, **more))
        try:
            await watch.until(asked, timeout)
        except BaseException:
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, OSError):
                await asked
            raise
        return asked.result()

    async def _distrusted(self, error: Exception, url: str, host: str, proxy: str | None) -> str:
        if not isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not to be trusted: {error}"
        chain: list[bytes] = []
        with contextlib.suppress(OSError, TimeoutError):
            chain = await shown_chain(url, proxy, CONNECT)
        return distrusted(error, host, chain)

    def _refused(self, error: Exception) -> str:
        """What may be wrong where the other end has ended the connection with an alert."""
        text = str(error) or type(error).__name__
        if "alert" not in text.lower() or self._certificate is None:
            return text
        try:
            dates = f": {clock(x509.load_pem_x509_certificate(self._certificate.read_bytes()))}"
        except (OSError, ValueError):
            dates = ""
        return f"the coordinator refused {self._certificate} ({text}){dates}"

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = Connector(ssl=self._tls, limit=self._connections, use_dns_cache=False, keepalive_timeout=KEEP)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session


def _lower(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _away(reply: Reply) -> bool:
    return any(code.encode() in reply.body[:200] for code in AWAY)


def _slices(body: bytes | AsyncIterator[bytes] | None) -> bytes | AsyncIterator[bytes] | None:
    """A long body by pieces, so that others have their turn while it is encrypted."""
    return _cut(body) if isinstance(body, bytes) and len(body) > PIECE else body


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), PIECE):
        yield body[at : at + PIECE]


async def _whole(response: aiohttp.ClientResponse, timeout: float) -> bytes:
    """The body of an answer, which is not believed to have an end."""
    found = bytearray()
    async for piece in _read(response, timeout):
        found += piece
        if len(found) > MAX_JSON and response.headers.get("content-type", "").startswith("application/json"):
            raise ConnectionError(f"the answer has more than the {MAX_JSON} bytes that it may have")
    return bytes(found)


async def _pieces(response: aiohttp.ClientResponse, timeout: float) -> AsyncIterator[bytes]:
    """The body as it comes. Raises OSError where it is cut off."""
    try:
        async with response:
            async for piece in _read(response, timeout):
                yield piece
    except (aiohttp.ClientError, ssl.SSLError) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


async def _read(response: aiohttp.ClientResponse, timeout: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(timeout):
                piece = await response.content.readany()
        except TimeoutError as error:
            raise TimeoutError(f"no byte of the answer came for {timeout:g} s") from error
        if not piece:
            return
        yield piece
