"""aiohttp's requests and answers from and to ours, with the clocks and counters that bodies need."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from insitu.core.errors import Refusal
from insitu.engines.https.authority.names import shown
from insitu.engines.https.http import HEADERS, Gone, Peer, Request, Response, Stored
from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.tls import AT_ONCE

log = logging.getLogger("insitu.https")

WHOLE = 64 * 1024
"""Answers of up to so many bytes are sent in one piece, longer ones in pieces of a quarter of it."""


class Handler(RequestHandler):
    """aiohttp's, but for what it says of requests that are no HTTP."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if isinstance(exc, LineTooLong):
            refusal = Refusal("TOO_LARGE", "a line of the request's head is too long")
        elif isinstance(exc, HttpProcessingError) or status == 400:
            refusal = Refusal("BAD_REQUEST", "this is not HTTP/1.1 as it is spoken here")
        else:
            refusal = Refusal("BROKEN", "the coordinator could not do this; its log says why", 5.0)
            log.error("a request failed", exc_info=exc)
        answer = whole(Response.refused(refusal))
        answer.force_close()
        return answer


class Server(web.Server):
    """Makes a `Handler` for each connection."""

    def __call__(self) -> RequestHandler:
        return Handler(self, loop=self._loop, **self._kwargs)


def handler_arguments(limits: Limits) -> dict[str, Any]:
    """How a `Server` is to be made."""
    return {
        "keepalive_timeout": limits.keepalive,
        "max_line_size": limits.line,
        "max_field_size": limits.line,
        "max_headers": limits.count,
        "lingering_time": 5.0,
        # Reading goes on until twice as much is waiting: more than what comes at once, or each would stop and start it.
        "read_bufsize": max(limits.buffer, AT_ONCE // 2),
        "auto_decompress": False,
        "access_log": None,
    }


def headers_of(request: web.BaseRequest) -> dict[str, str]:
    """Header names in lower case. Raises Refusal where one that must be there once is there twice."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        name = name.lower()
        if name in found:
            raise Refusal("BAD_REQUEST", f"the header {shown(name)} is there twice")
        found[name] = value
    return found


def query_of(text: str) -> dict[str, str]:
    """``a=1&b=2``. Raises Refusal where it is something else, or says a thing twice."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=32, errors="strict")
    except ValueError as error:
        raise Refusal("BAD_REQUEST", f"the query {shown(text)} is none") from error
    if len(dict(pairs)) != len(pairs):
        raise Refusal("BAD_REQUEST", f"the query {shown(text)} says a thing twice")
    return dict(pairs)


def read(request: web.BaseRequest, peer: Peer | None, address: str, limits: Limits) -> Request:
    """A request as a value; its body is read when the handler reads it. Raises Refusal."""
    headers = headers_of(request)
    path, mark, query = request.raw_path.partition("?")
    length = request.content_length
    if "transfer-encoding" in headers or (length is None and request.can_read_body):
        raise Refusal("LENGTH_REQUIRED", "a body needs its length: send content-length, not transfer-encoding")
    if headers.get("content-encoding", "identity") != "identity":
        raise Refusal("BAD_REQUEST", "a body is taken as it is: send it without content-encoding")
    most = limits.body(request.method, peer is not None)
    if length is not None and length > most:
        raise Refusal("TOO_LARGE", f"the body has {length} bytes, and may have {most}")
    return Request(
        method=request.method, path=path, peer=peer, query=query_of(query) if mark and query else {}, headers=headers,
        body=_pieces(request, length, limits) if length else None, length=length or 0, address=address,
    )  # fmt: skip


async def _pieces(request: web.BaseRequest, length: int, limits: Limits) -> AsyncIterator[bytes]:
    """A body as it comes. Raises Gone where it is cut off, and Refusal TOO_SLOW. Time that we take does not count."""
    clock = asyncio.get_running_loop().time
    if request.headers.get("expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    got, waited = 0, 0.0
    idle = Idle(request.content, limits.body_idle)
    try:
        while got < length:
            began = idle.since = clock()
            try:
                piece = await request.content.readany()
            except TimeoutError as error:
                text = f"no byte of the body came for {limits.body_idle:g} s, at {got} of {length}"
                raise Refusal("TOO_SLOW", text, retry_after=1.0) from error
            except (OSError, web.RequestPayloadError) as error:
                raise Gone(f"the caller was gone at {got} of {length} bytes") from error
            idle.since = None
            waited += clock() - began
            if not piece:
                raise Gone(f"the body ended at {got} of {length} bytes")
            got += len(piece)
            if waited > limits.rate_after and got < waited * limits.rate:
                text = f"the body came at {got / waited:.0f} bytes per second, and {limits.rate:g} are the least"
                raise Refusal("TOO_SLOW", text, retry_after=1.0)
            yield piece
    finally:
        idle.end()


class Idle:
    """Ends a body of which no byte comes for so many seconds, with a TimeoutError for whoever waits for one.

    since  when whoever reads began to wait; None while it does not. Setting it is all that a piece of a body costs.
    """

    def __init__(self, content: StreamReader, seconds: float) -> None:
        self.since: float | None = None
        self._content, self._seconds, self._loop = content, seconds, asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        left = self._seconds - (0.0 if self.since is None else now - self.since)
        if left > 0:
            self._timer = self._loop.call_at(now + left, self._look)
        else:
            self._content.set_exception(TimeoutError())

    def end(self) -> None:
        """Nobody will wait any more."""
        self._timer.cancel()


def whole(response: Response) -> web.Response:
    """A short answer."""
    assert isinstance(response.body, bytes)
    headers = {"cache-control": "no-store", **HEADERS, **response.headers}
    return web.Response(status=response.status, headers=headers, body=response.body)


async def send(request: web.BaseRequest, response: Response, close: bool, limits: Limits) -> web.StreamResponse:
    """Sends an answer; a long one by pieces, as fast as the caller takes them. Raises Gone where it does not."""
    if isinstance(response.body, bytes) and len(response.body) <= WHOLE:
        short = whole(response)
        if close:
            short.force_close()
        return short
    assert not isinstance(response.body, Stored)
    length = len(response.body) if isinstance(response.body, bytes) else response.length
    out = web.StreamResponse(
        status=response.status, headers={"cache-control": "no-store", **HEADERS, **response.headers}
    )
    out.content_length = length
    if close:
        out.force_close()
    sent = 0
    try:
        await out.prepare(request)
        async for piece in _slices(response.body):
            sent += len(piece)
            if length is not None and sent > length:
                break
            async with asyncio.timeout(limits.reader_idle):
                await out.write(piece)
        if length is not None and sent != length:
            raise Gone(f"the answer has {sent} bytes instead of {length}")
        async with asyncio.timeout(limits.reader_idle):
            await out.write_eof()
    except TimeoutError as error:
        raise Gone(f"the caller took nothing for {limits.reader_idle:g} s, at {sent} of {length} bytes") from error
    finally:
        if isinstance(response.body, AsyncGenerator):
            await response.body.aclose()
    return out


async def _slices(body: bytes | AsyncIterator[bytes]) -> AsyncIterator[memoryview]:
    step = WHOLE // 4
    if isinstance(body, bytes):
        for at in range(0, len(body), step):
            yield memoryview(body)[at : at + step]
        return
    async for piece in body:
        for at in range(0, len(piece), step):
            yield memoryview(piece)[at : at + step]
