"""Requests over TLS 1.3 with aiohttp, to whichever of a coordinator's addresses answers; by a proxy if one is set."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from insitu.core.errors import ConfigError
from insitu.engines.https.http import HEADERS, MAX_JSON, Reply

CONNECT = 15.0
"""Seconds for a connection, its handshake included."""
KEEP = 30.0
"""Seconds that an idle connection is kept: less than the middleboxes do that forget it."""
AWAY = ("NOT_LEADER", "STOPPING")
"""What a coordinator says that does not lead: the next address is tried."""
PIECE = 256 * 1024


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
        self._proxy = proxy
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
        if length is not None:
            told["content-length"] = str(length)
        elif body is None and method != "GET":
            told["content-length"] = "0"
        problems = []
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
        session = self._opened()
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT, sock_connect=CONNECT, sock_read=timeout)
        try:
            response = await session.request(
                method,
                url + path,
                params=dict(query or {}),
                headers=headers,
                data=body,
                timeout=limits,
                allow_redirects=False,
                proxy=self._proxy,
            )
            if stream and response.status < 400:
                return Reply(response.status, _lower(response), b"", _pieces(response))
            async with response:
                return Reply(response.status, _lower(response), await _whole(response))
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"no byte for {timeout:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise ConnectionError(f"its certificate is not to be trusted: {error.certificate_error}") from error
        except aiohttp.ClientConnectorSSLError as error:
            raise ConnectionError(f"TLS failed: {error.os_error}") from error
        except (aiohttp.ClientError, asyncio.IncompleteReadError) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                ssl=self._tls, limit=self._connections, use_dns_cache=False, keepalive_timeout=KEEP
            )
            self._session = aiohttp.ClientSession(connector=connector, trust_env=True, auto_decompress=False)
        return self._session


def _lower(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _away(reply: Reply) -> bool:
    return any(code.encode() in reply.body[:200] for code in AWAY)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer, which is not believed to have an end."""
    found = bytearray()
    async for piece in response.content.iter_chunked(PIECE):
        found += piece
        if len(found) > MAX_JSON and response.headers.get("content-type", "").startswith("application/json"):
            raise ConnectionError(f"the answer has more than the {MAX_JSON} bytes that it may have")
    return bytes(found)


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body as it comes. Raises OSError where it is cut off."""
    try:
        async with response:
            async for piece in response.content.iter_chunked(PIECE):
                yield piece
    except TimeoutError as error:
        raise TimeoutError("no byte of the answer came for too long") from error
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
