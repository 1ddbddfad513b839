"""The one table of who may ask what. What is not in it is refused, and strangers cannot tell what is in it."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

from insitu.core.errors import Fenced, Refusal, StoreError, TokenError
from insitu.engines.https.authority.names import shown
from insitu.engines.https.http import HEADERS, PROTOCOL, Gone, Peer, Request, Response, Route

log = logging.getLogger("insitu.https")

MAX_PATH = 2048
"""The longest path in characters, before and after decoding."""
LOCAL = ("/v1/health", "/v1/ready", "/v1/metrics")
"""What the plain port on the loopback interface answers to anyone."""
_ARGUMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@=-]{0,255}")
_PARAMETER = re.compile(r"\{([a-z_]+)\}")

Identify = Callable[[str, str], Peer]
"""(serial, common name) → who that is by the ledger. Raises Refusal UNKNOWN_CERTIFICATE or REVOKED. It never waits."""


@dataclass(frozen=True)
class Decision:
    """What was asked and what came of it, for audit log and metrics. ``code`` is OK, why it was refused, or GONE.

    route  the pattern that matched, empty where none did; ``path`` as it came, to be escaped before it is shown
    """

    method: str
    path: str
    route: str
    peer: Peer | None
    address: str
    code: str
    status: int


Hook = Callable[[Decision], None]


class Table:
    """Routes, and the rules that hold for all of them. Its `handle` is what ports and simulators call.

    identify  who a certificate belongs to; asked for every request, so that a revocation counts from the next one on
    decided   called with every decision; what it raises is logged and changes nothing
    headers   stand in every answer to a member
    """

    def __init__(
        self, routes: Iterable[Route], identify: Identify, decided: Hook | None = None,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:  # fmt: skip
        self.routes = tuple(routes)
        self._identify, self._decided, self._headers = identify, decided, headers
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[tuple[str, ...], dict[str, Route]]] = []
        for route in self.routes:
            self._add(route)

    async def handle(self, request: Request, local: bool = False) -> Response:
        """The answer to a request; raises nothing but cancellation. ``local``: it came by the plain loopback port."""
        found: Route | None = None
        try:
            request, found = self._permitted(request, local)
            response = await found.handler(request)
            code = "OK"
        except Gone:
            code, response = "GONE", Response(499)
        except Refusal as refusal:
            code, response = refusal.code, Response.refused(refusal)
        except Exception as error:
            told = _translated(error, request, found)
            code, response = told.code, Response.refused(told)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if request.peer is not None:
            for name, value in self._headers().items():
                response.headers.setdefault(name, value)
        self._tell(request, found, code, response.status)
        return response

    def open_to_strangers(self, method: str, path: str) -> bool:
        """Whether a caller without a certificate may ask this: a port refuses the others before it reads a body."""
        route = self._exact.get(path, {}).get(method)
        return route is not None and not route.roles

    def _add(self, route: Route) -> None:
        if not route.path.startswith("/v1/") or (not route.roles and "{" in route.path):
            raise ValueError(
                f"{route.method} {route.path}: paths start with /v1/, and those for strangers have no {{…}}"
            )
        if "{" not in route.path:
            methods = self._exact.setdefault(route.path, {})
        else:
            shape = tuple(route.path.split("/"))
            methods = next((m for s, m in self._patterns if _same(s, shape)), {})
            if not methods:
                self._patterns.append((shape, methods))
        if route.method in methods:
            raise ValueError(f"{route.method} {route.path} is in the table twice")
        methods[route.method] = route

    def _permitted(self, request: Request, local: bool) -> tuple[Request, Route]:
        """The request with its peer and arguments, and its route. Raises Refusal."""
        if local:
            if request.method != "GET" or request.path not in LOCAL or request.path not in self._exact:
                raise Refusal("NOT_FOUND", f"this port answers GET {', '.join(LOCAL)}, and nothing else")
            return replace(request, peer=None), self._exact[request.path]["GET"]
        if request.peer is None:
            if not self.open_to_strangers(request.method, request.path):
                raise Refusal(
                    "NO_CERTIFICATE", "this needs a certificate of this federation: `insitu site join` gets one"
                )
            route = self._exact[request.path][request.method]
        else:
            # Who asks comes first: what is asked is looked at for members only.
            request.peer = replace(self._identify(request.peer.serial, request.peer.name), address=request.address)
            route, arguments = self._match(request)
            request.arguments = arguments
            if route.roles and request.peer.role not in route.roles:
                raise Refusal(
                    "FORBIDDEN",
                    f"{route.method} {route.path} is for {' and '.join(route.roles)}, and {request.peer.name} is a "
                    f"{request.peer.role}",
                )
        _check_version(request.headers)
        return request, route

    def _match(self, request: Request) -> tuple[Route, dict[str, str]]:
        path = plain(request.path)
        methods, arguments = self._exact.get(path), {}
        if methods is None:
            parts = tuple(path.split("/"))
            for shape, candidates in self._patterns:
                if len(shape) == len(parts) and all(s == p or s[:1] == "{" for s, p in zip(shape, parts, strict=True)):
                    methods = candidates
                    break
        if not methods:
            raise Refusal("NOT_FOUND", f"there is no {shown(path)}")
        route = methods.get(request.method)
        if route is None:
            raise Refusal(
                "BAD_METHOD", f"{shown(path)} takes {', '.join(sorted(methods))}, not {shown(request.method)}"
            )
        if "{" in route.path:
            arguments = _arguments(route.path, path)
        return route, arguments

    def _tell(self, request: Request, route: Route | None, code: str, status: int) -> None:
        if self._decided is None:
            return
        told = Decision(
            request.method, request.path, "" if route is None else route.path, request.peer, request.address, code,
            status,
        )  # fmt: skip
        try:
            self._decided(told)
        except Exception:
            log.exception("a decision could not be noted: %s %s", told.code, shown(told.path))


def plain(path: str) -> str:
    """A path with its ``%XX`` decoded, once. Raises Refusal BAD_REQUEST for one that two readers could take for two."""
    if len(path) > MAX_PATH or not path.startswith("/") or not path.isascii():
        raise Refusal(
            "BAD_REQUEST", f"a path is at most {MAX_PATH} ASCII characters that begin with '/', not {shown(path)}"
        )
    try:
        decoded = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal("BAD_REQUEST", f"the path {shown(path)} is not UTF-8") from error
    parts = decoded.split("/")
    if (
        decoded.count("/") != path.count("/")
        or any(not c.isascii() or not c.isprintable() or c in "\\%?#; " for c in decoded)
        or any(p in ("", ".", "..") for p in parts[1:])
    ):
        raise Refusal(
            "BAD_REQUEST", f"the path {shown(path)} has empty, '.' or '..' parts, or characters it may not have"
        )
    return decoded


def _arguments(pattern: str, path: str) -> dict[str, str]:
    found = {}
    for shape, part in zip(pattern.split("/"), path.split("/"), strict=True):
        parameter = _PARAMETER.fullmatch(shape)
        if parameter is None:
            continue
        if _ARGUMENT.fullmatch(part) is None:
            raise Refusal(
                "BAD_REQUEST", f"{shown(part)} is no {parameter[1]}: letters, digits and '._~:@=-', at most 256"
            )
        found[parameter[1]] = part
    return found


def _same(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return len(one) == len(other) and all(
        a == b or (a[:1] == "{" and b[:1] == "{") for a, b in zip(one, other, strict=True)
    )


def _check_version(headers: Mapping[str, str]) -> None:
    """Raises Refusal VERSION where the caller's protocol is more than one apart; none given means the first one."""
    text = headers.get("insitu-protocol", "1")
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise Refusal("BAD_REQUEST", f"the header insitu-protocol is {shown(text)}, and should be a number")
    if abs(int(text) - PROTOCOL) > 1:
        theirs = shown(headers.get("insitu-version", "unknown"), 40)
        raise Refusal(
            "VERSION",
            f"you speak protocol {int(text)} (insitu {theirs}), and this coordinator {PROTOCOL} (insitu "
            f"{HEADERS['insitu-version']}), one more or less: update the older one",
        )


def _translated(error: Exception, request: Request, route: Route | None) -> Refusal:
    """What a peer is told of an error: never its text, unless that was written for it."""
    if isinstance(error, TokenError):
        return Refusal("BAD_TOKEN", str(error))
    if isinstance(error, Fenced):
        return Refusal("NOT_LEADER", "another coordinator leads now: try the next address", retry_after=2.0)
    where = f"{request.method} {shown(request.path)}" + (f" of {request.peer.name}" if request.peer else "")
    if isinstance(error, (StoreError, OSError)) and _full(error):
        log.error("no space is left: %s was refused", where)
        return Refusal(
            "DISK_FULL", "the coordinator has no space left: it goes on when there is some", retry_after=30.0
        )
    log.error("%s failed", where, exc_info=error)
    return Refusal("BROKEN", "the coordinator could not do this; its log says why", retry_after=5.0)


def _full(error: BaseException | None) -> bool:
    for _ in range(8):  # an error and what caused it
        if error is None:
            return False
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "full" in str(error).lower() or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
