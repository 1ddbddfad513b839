"""A worker's side of requests: their heads go to the main process, which says what becomes of them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from insitu.core.errors import Refusal, StoreError
from insitu.core.federation import Blobs
from insitu.engines.https.api.receiving import Disk, take
from insitu.engines.https.api.sending import taken
from insitu.engines.https.http import Gone, Request, Response, Stored, Upload
from insitu.engines.https.serve.workers.line import Line, words

log = logging.getLogger("insitu.https")


class Front:
    """What a worker's port serves in place of a table.

    blobs  those of the main process, as this process has opened them
    disk   runs a function that waits for a disk, off the loop
    """

    def __init__(self, blobs: Blobs, disk: Disk, line: Line) -> None:
        self.blobs, self.disk, self.line = blobs, disk, line
        self._asked: dict[int, Asked] = {}
        self._numbers = itertools.count(1)

    async def handle(self, request: Request, local: bool = False) -> Response:
        """The main process's answer. Raises nothing but cancellation, as a `Table`."""
        number = next(self._numbers)
        asked = self._asked[number] = Asked(self, number, request)
        try:
            response = await asked.answered()
        except BaseException:
            await self.forget(number)
            raise
        if not isinstance(response.body, AsyncIterator):
            self._asked.pop(number, None)
        return response

    def hear(self, what: str, number: int, told: dict[str, Any], data: bytes) -> None:
        """A frame that belongs to a request."""
        if (asked := self._asked.get(number)) is not None:
            asked.hear(what, told, data)

    async def forget(self, number: int) -> None:
        """Nobody waits for this answer any more; an upload keeps what it has first."""
        if (asked := self._asked.get(number)) is not None:
            await asked.drop()
            self._asked.pop(number, None)
            self.line.tell("forget", number)


class Asked:
    """One request, from its head to the last byte of its answer."""

    def __init__(self, front: Front, number: int, request: Request) -> None:
        self._front, self._number, self._request = front, number, request
        self._answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._next: asyncio.Future[tuple[str, dict[str, Any], bytes]] | None = None
        self._sent = 0
        self._stop = asyncio.Event()
        self._doing: asyncio.Task[None] | None = None

    async def answered(self) -> Response:
        """Asks, and waits for the answer."""
        request = self._request
        self._tell(
            "ask", method=request.method, path=request.path, query=dict(request.query), headers=dict(request.headers),
            length=request.length if request.body is not None else None, address=request.address,
            peer=None if request.peer is None else asdict(request.peer),
        )  # fmt: skip
        return await self._answer

    def hear(self, what: str, told: dict[str, Any], data: bytes) -> None:
        """What the main process wants done with this request."""
        if what == "more":
            self._do(self._send_piece())
        elif what == "take":
            self._do(self._take(Upload(**told)))
        elif what == "stop":
            self._stop.set()
        elif what == "answer":
            if not self._answer.done():
                self._answer.set_result(self._response(told, data))
        elif what == "stored":
            self._do(self._read(told))
        elif self._next is not None and not self._next.done():
            self._next.set_result((what, told, data))

    async def drop(self) -> None:
        """Ends what is being done for it."""
        if self._doing is not None:
            self._doing.cancel()
            with suppress(asyncio.CancelledError):
                await self._doing

    def _tell(self, what: str, data: bytes | memoryview = b"", **told: Any) -> None:
        self._front.line.tell(what, self._number, data, **told)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        self._doing = asyncio.ensure_future(work)

    # ------------------------------------------------------------ bodies

    async def _send_piece(self) -> None:
        """The next piece of the request's body, as it comes."""
        assert self._request.body is not None
        try:
            data = await anext(self._request.body)
        except Exception as error:
            self._tell("broken", **_said(error))
        else:
            self._sent += len(data)
            self._tell("piece", data, last=self._sent == self._request.length)

    async def _take(self, upload: Upload) -> None:
        """The request's body is a chunk: into the blobs with it."""
        came = 0

        def count(more: int) -> None:
            nonlocal came
            came += more

        front = self._front
        try:
            at = await take(front.blobs, front.disk, self._request.body, upload, self._stop, count)
        except Exception as error:
            self._tell("taken", bytes=came, **_said(error))
        else:
            self._tell("taken", bytes=came, at=at)

    async def _read(self, told: dict[str, Any]) -> None:
        """The answer's body is a chunk."""
        stored = Stored(*told.pop("stored"))
        try:
            body = await taken(self._front.blobs, self._front.disk, stored)
            response = Response(told["status"], body, told["headers"], stored.length)
        except Exception:
            log.exception("a chunk cannot be read")
            response = Response.refused(Refusal("BROKEN", "the coordinator could not do this; its log says why", 5.0))
        if not self._answer.done():
            self._answer.set_result(response)

    def _response(self, told: dict[str, Any], data: bytes) -> Response:
        body: bytes | AsyncIterator[bytes] = data if told["whole"] else Pieces(self)
        return Response(told["status"], body, told["headers"], told["length"])

    async def piece(self) -> bytes:
        """The next piece of the answer's body, empty at its end. Raises Gone where there is none, and no end."""
        self._next = asyncio.get_running_loop().create_future()
        self._tell("next")
        what, told, data = await self._next
        if what == "broken":
            raise Gone(told["text"])
        return data

    async def end(self) -> None:
        """The answer is over, or nobody wants the rest of it."""
        await self._front.forget(self._number)


class Pieces(AsyncGenerator[bytes, None]):
    """An answer's body, piece after piece. Whoever has it closes it, whether he has begun to read it or not."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    async def asend(self, value: None) -> bytes:
        if data := await self._asked.piece():
            return data
        raise StopAsyncIteration

    async def athrow(self, *error: Any) -> bytes:
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._asked.end()


def _said(error: Exception) -> dict[str, Any]:
    """An error for the main process; one that should not be is logged where it happened."""
    if not isinstance(error, (Refusal, Gone, StoreError)):
        log.error("a body could not be taken", exc_info=error)
    return words(error)
