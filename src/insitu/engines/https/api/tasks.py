"""What sites say and ask: what they have, what there is to do, how it goes, and what came of it."""

from __future__ import annotations

from typing import Any

from insitu.core.errors import Refusal
from insitu.core.federation import Role
from insitu.engines.https.api.numbers import seconds
from insitu.engines.https.exchange import Exchange
from insitu.engines.https.http import Request, Response, Route
from insitu.engines.https.wire.manifest import is_digest
from insitu.engines.https.wire.packing import CHUNK

SITE: tuple[Role, ...] = ("site",)
MAX_CLASSES = 100_000
PHASES = ("waiting", "downloading", "training", "uploading")
MAX_ERROR = 2000


class Tasks:
    """The routes of sites, but for the chunks."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def routes(self) -> list[Route]:
        """What is answered here."""
        return [
            Route("POST", "/v1/hello", SITE, self.hello, "a site says what it has"),
            Route("POST", "/v1/bye", SITE, self.bye, "a site leaves in good order"),
            Route("GET", "/v1/next", SITE, self.next, "what is there to do?"),
            Route("GET", "/v1/documents/{digest}", SITE, self.document, "a description, or a message's manifest"),
            Route("POST", "/v1/tasks/{task}/alive", SITE, self.alive, "a site is at work"),
            Route("POST", "/v1/tasks/{task}/missing", SITE, self.missing, "which chunks are to be sent?"),
            Route("POST", "/v1/tasks/{task}/update", SITE, self.update, "the manifest of an update that was sent"),
            Route("POST", "/v1/tasks/{task}/failure", SITE, self.failure, "there will be no update, and why"),
        ]

    async def hello(self, request: Request) -> Response:
        """Takes down what a site declares, and tells it how things are done here."""
        site, exchange = name_of(request), self._exchange
        body = await request.table()
        declared = {**_declared(body.get("data")), "versions": _versions(body.get("versions"))}
        await exchange.hello(site, declared)
        return Response.json(
            {"name": site, "poll": exchange.poll, "lease": exchange.lease, "chunk": CHUNK, "now": exchange.wall()}
        )

    async def bye(self, request: Request) -> Response:
        """Good-bye."""
        self._exchange.bye(name_of(request))
        return Response.json({})

    async def next(self, request: Request) -> Response:
        """A task, at once or when there is one; nothing after so many seconds."""
        wait = seconds(request, "wait", 0.0, self._exchange.poll)
        task = await self._exchange.next_task(name_of(request), wait)
        return Response(204) if task is None else Response.json(task)

    async def document(self, request: Request) -> Response:
        """A document, as it was written."""
        digest = request.arguments["digest"]
        if not is_digest(digest):
            raise Refusal("NOT_FOUND", "a document is called by its SHA-256, 64 hexadecimal digits")
        text = await self._exchange.document(name_of(request), digest)
        return Response(200, text.encode(), {"content-type": "application/json"})

    async def alive(self, request: Request) -> Response:
        """Whether the site should go on."""
        body = await request.table()
        phase = body.get("phase")
        if phase not in PHASES:
            raise Refusal("BAD_REQUEST", f"phase is {phase!r:.40}: give one of {', '.join(PHASES)}")
        open, reason = await self._exchange.alive(name_of(request), request.arguments["task"], phase)
        return Response.json({"open": open, "reason": reason})

    async def missing(self, request: Request) -> Response:
        """Chunks that are not there yet, each with the number of bytes that are."""
        chunks = _chunks((await request.table()).get("chunks"))
        found = await self._exchange.missing(name_of(request), request.arguments["task"], chunks)
        return Response.json({"missing": [list(one) for one in found]})

    async def update(self, request: Request) -> Response:
        """An update counts from here on, or is refused."""
        value = await request.value()
        duplicate = await self._exchange.accept(name_of(request), request.arguments["task"], value)
        return Response.json({"accepted": True, "duplicate": duplicate})

    async def failure(self, request: Request) -> Response:
        """The site has failed in this call."""
        body = await request.table()
        code, error = body.get("code"), body.get("error")
        if not isinstance(code, str) or not code.replace("_", "").isalnum() or len(code) > 40:
            raise Refusal("BAD_REQUEST", "code is no code: give FAILED, SITE_REFUSED or MEMORY_LOST")
        if not isinstance(error, str):
            raise Refusal("BAD_REQUEST", "error is no text: say what went wrong")
        told = _printable(error[:MAX_ERROR])
        duplicate = await self._exchange.fail(name_of(request), request.arguments["task"], code, told)
        return Response.json({"accepted": True, "duplicate": duplicate})


def name_of(request: Request) -> str:
    """Who asks, as the certificate says."""
    if request.peer is None:
        raise Refusal("NO_CERTIFICATE", "this needs a certificate: `insitu site join` gets one")
    return request.peer.name


def _chunks(value: Any) -> list[tuple[str, int]]:
    right = isinstance(value, list) and all(
        isinstance(one, list) and len(one) == 2 and is_digest(one[0]) and type(one[1]) is int for one in value
    )
    if not right:
        raise Refusal("BAD_REQUEST", "chunks is no list of [SHA-256, length]")
    return [(one[0], one[1]) for one in value]


def _declared(value: Any) -> dict[str, Any]:
    """What a site says of its data, of the right types, and nothing else."""
    if not isinstance(value, dict):
        raise Refusal("BAD_REQUEST", "data is no object: say examples, holdout, features and classes")
    found: dict[str, Any] = {}
    for name in ("examples", "holdout"):
        number = value.get(name, 0)
        if type(number) is not int or not 0 <= number < 2**48:
            raise Refusal("BAD_REQUEST", f"data.{name} is {number!r:.40}: give a whole number of examples")
        found[name] = number
    features, classes = value.get("features"), value.get("classes")
    if features is not None and not (
        isinstance(features, list) and len(features) <= 16 and all(type(n) is int and 0 <= n < 2**31 for n in features)
    ):
        raise Refusal("BAD_REQUEST", "data.features is no shape of an example: give a list of whole numbers, or null")
    if classes is not None and not _are_classes(classes):
        raise Refusal("BAD_REQUEST", f"data.classes is no list of at most {MAX_CLASSES} labels, numbers or text")
    return {**found, "features": features, "classes": classes}


def _are_classes(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > MAX_CLASSES:
        return False
    kinds = {type(one) for one in value}
    return kinds <= {int} or kinds <= {bool} or (kinds <= {str} and all(len(one) <= 256 for one in value))


def _versions(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > 32:
        raise Refusal("BAD_REQUEST", "versions is no object with at most 32 versions")
    return {_printable(str(name)[:40]): _printable(str(version)[:60]) for name, version in value.items()}


def _printable(text: str) -> str:
    """A stranger's text, in which nothing can move a cursor or begin a line."""
    return "".join(c if c.isprintable() else " " for c in text)
