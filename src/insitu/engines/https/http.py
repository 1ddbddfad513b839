"""Requests and answers as values: handlers and sites know these, and neither sockets nor the library behind them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from insitu.core.errors import Refusal
from insitu.core.federation import Role
from insitu.engines.https.codes import CODES
from insitu.version import __version__

PROTOCOL = 1
"""The version of what is said. A caller that is one version older or newer is answered."""
HEADERS = {"insitu-protocol": str(PROTOCOL), "insitu-version": __version__}
"""What stands in each request and each answer."""
MAX_JSON = 16 * 2**20
"""The largest JSON body in bytes."""
MAX_NESTING = 32


class Gone(ConnectionError):
    """The caller is no longer there; raised by a request's body. What has arrived is worth keeping."""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as the certificate says; ``role`` and ``name`` as the ledger says for its serial."""

    name: str
    role: Role
    serial: str
    address: str = ""


@dataclass(frozen=True)
class Upload:
    """The bytes of a chunk from ``offset`` on, of ``total`` in all, that ``owner`` sends."""

    owner: str
    digest: str
    offset: int
    total: int


@dataclass(frozen=True)
class Stored:
    """An answer's body that is in the blobs: ``length`` bytes of a chunk from ``offset`` on."""

    digest: str
    offset: int
    length: int


class Elsewhere(Protocol):
    """The process that holds a caller's connection, where that is another one: chunks need not come by here."""

    async def take(self, upload: Upload, stop: asyncio.Event, count: Callable[[int], None]) -> int:
        """Writes the request's body into the blobs there, until ``stop``; how many bytes are there, all if it is whole.

        ``count`` is told how many bytes came, whatever came of them. Raises as `receiving.take` does.
        """
        ...


@dataclass
class Request:
    """A request. Header names are lower case. ``body`` yields the bytes as they come, at most once."""

    method: str
    path: str
    peer: Peer | None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: AsyncIterator[bytes] | None = None
    length: int | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    """What stands in the place of ``{…}`` in the route's path."""
    address: str = ""
    elsewhere: Elsewhere | None = None
    """Where the connection is, if it is not in this process."""

    async def value(self, most: int = MAX_JSON) -> Any:
        """The body as JSON, of at most ``most`` bytes; an empty one is ``{}``. Raises Refusal."""
        found = bytearray()
        if self.body is not None:
            async for piece in self.body:
                found += piece
                if len(found) > most:
                    raise Refusal("TOO_LARGE", f"the body of {self.method} {self.path[:200]} may have {most} bytes")
        return parsed(bytes(found)) if found else {}

    async def table(self, most: int = MAX_JSON) -> dict[str, Any]:
        """The body as a JSON object. Raises Refusal BAD_REQUEST where it is something else."""
        value = await self.value(most)
        if not isinstance(value, dict):
            raise Refusal("BAD_REQUEST", f"the body of {self.method} {self.path[:200]} should be a JSON object")
        return value


@dataclass
class Response:
    """An answer: bytes, or an iterator of them of ``length`` in all; `Stored` only where it goes ``elsewhere``."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] | Stored = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Response:
        """A JSON answer."""
        text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        return cls(status, text, {"content-type": "application/json", **headers})

    @classmethod
    def refused(cls, refusal: Refusal) -> Response:
        """``{"error": code, "message": text}`` with the code's status."""
        headers = {} if refusal.retry_after is None else {"retry-after": str(max(1, round(refusal.retry_after)))}
        return cls.json({"error": refusal.code, "message": str(refusal)}, CODES[refusal.code], **headers)


class Answers(Protocol):
    """What answers requests, and raises nothing but cancellation: an ``api.table.Table`` is one."""

    async def handle(self, request: Request, local: bool = False) -> Response: ...


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """A path that is answered, and to whom. ``roles`` empty: to callers without a certificate as well (enrolment)."""

    method: str
    path: str
    roles: tuple[Role, ...]
    handler: Handler
    summary: str = ""


@dataclass
class Reply:
    """What a caller gets back. ``body`` is whole unless the request was made with ``stream=True``."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None

    def value(self) -> Any:
        """The body as JSON. Raises Refusal where the answer is one."""
        return parsed(self.body)

    def checked(self) -> Reply:
        """This reply, unless it refuses: then Refusal is raised, with the code and text that came."""
        if self.status < 400:
            return self
        try:
            told = parsed(self.body)
            code, text = str(told["error"]), str(told["message"])
        except (Refusal, KeyError, TypeError):
            code, text = "BROKEN", f"the answer has status {self.status} and no error of ours: is a proxy in between?"
        after = self.headers.get("retry-after", "")  # a proxy may give a date here
        seconds = float(after) if after.isascii() and after.isdecimal() and len(after) < 10 else None
        raise Refusal(code if code in CODES else "BROKEN", text[:500], seconds)


class Transport(Protocol):
    """How a site or an operator reaches its coordinator. Raises OSError (ConnectionError, TimeoutError) if it cannot.

    ``timeout``: seconds without a byte in either direction before it gives up.
    """

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
    ) -> Reply: ...

    async def close(self) -> None: ...


def parsed(text: bytes) -> Any:
    """JSON from a stranger: of bounded size and depth, keys once only, no NaN. Raises Refusal BAD_REQUEST."""
    if len(text) > MAX_JSON:
        raise Refusal("TOO_LARGE", f"a JSON body has {len(text)} bytes, and may have {MAX_JSON}")
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal("BAD_REQUEST", f"the body is no JSON of ours: {str(error)[:200]}") from error
    _shallow(value)
    return value


def _shallow(value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [x for v in level if isinstance(v, (dict, list)) for x in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return
    raise Refusal("BAD_REQUEST", f"the body is nested deeper than {MAX_NESTING} levels: flatten it")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
