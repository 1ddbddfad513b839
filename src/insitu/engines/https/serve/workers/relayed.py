"""The main process's side of a worker's requests: they are answered by the table, like those of its own port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from insitu.core.errors import Refusal
from insitu.engines.https.http import Answers, Gone, Peer, Request, Response, Stored, Upload
from insitu.engines.https.serve.workers.line import PIECE, Line, error_of, words

log = logging.getLogger("insitu.https")

Reply = tuple[str, dict[str, Any], bytes]


class Desk:
    """Answers all that one worker asks. Who a caller is, the worker says: it has seen the certificate."""

    def __init__(self, table: Answers) -> None:
        self._table = table
        self.line: Line
        self._asked: dict[int, Relayed] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def hear(self, what: str, number: int, told: dict[str, Any], data: bytes) -> None:
        """A frame that belongs to a request."""
        if what == "ask":
            task = self._tasks[number] = asyncio.ensure_future(self._answer(number, told))
            task.add_done_callback(lambda task: self._tasks.pop(number, None))
        elif what == "forget":
            if (given_up := self._tasks.get(number)) is not None:
                given_up.cancel()
        elif (asked := self._asked.get(number)) is not None:
            asked.hear(what, told, data)

    def lost(self) -> None:
        """The worker is no more: whatever it was sending has broken off. What it had asked is answered to nobody."""
        for asked in self._asked.values():
            asked.lose()

    def tasks(self) -> list[asyncio.Task[None]]:
        """What is being answered."""
        return list(self._tasks.values())

    async def _answer(self, number: int, told: dict[str, Any]) -> None:
        asked = self._asked[number] = Relayed(self.line, number)
        peer = told.pop("peer")
        request = Request(
            **told, peer=None if peer is None else Peer(**peer), body=asked.body() if told["length"] else None,
            elsewhere=asked,
        )  # fmt: skip
        request.length = request.length or 0
        try:
            await asked.send(await self._table.handle(request))
        except Exception:  # else the worker's caller would wait for it
            log.exception("a request could not be answered")
            await asked.send(Response.refused(Refusal("BROKEN", "the coordinator's log says why", 5.0)))
        finally:
            del self._asked[number]


class Relayed:
    """A request whose connection a worker has."""

    def __init__(self, line: Line, number: int) -> None:
        self._line, self._number = line, number
        self._heard: asyncio.Queue[Reply | None] = asyncio.Queue()

    def hear(self, what: str, told: dict[str, Any], data: bytes) -> None:
        """What the worker answers; each is waited for."""
        self._heard.put_nowait((what, told, data))

    def lose(self) -> None:
        """It will not answer."""
        self._heard.put_nowait(None)

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body, as the worker gets it. Raises what happens to it there."""
        last = False
        while not last:
            what, told, data = await self._ask("more")
            if what == "broken":
                raise error_of(told)
            yield data
            last = told["last"]

    async def take(self, upload: Upload, stop: asyncio.Event, count: Callable[[int], None]) -> int:
        """See `http.Elsewhere`. Returns when the worker has let go of the chunk, whatever happens meanwhile."""
        told = {"owner": upload.owner, "digest": upload.digest, "offset": upload.offset, "total": upload.total}
        taken = asyncio.ensure_future(self._ask("take", **told))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((taken, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not taken.done():
                self._line.tell("stop", self._number)
            _, result, _ = await taken
        finally:
            taken.cancel()
            stopped.cancel()
        count(int(result["bytes"]))
        if "error" in result:
            raise error_of(result)
        return int(result["at"])

    async def send(self, response: Response) -> None:
        """The answer, and its body as fast as the worker's caller takes it."""
        head: dict[str, Any] = {"status": response.status, "headers": response.headers}
        body = response.body
        if isinstance(body, Stored):
            stored = [body.digest, body.offset, body.length]
            self._line.tell("stored", self._number, **head, stored=stored)
        elif isinstance(body, bytes) and len(body) <= PIECE:
            self._line.tell("answer", self._number, body, **head, whole=True, length=len(body))
        else:
            length = len(body) if isinstance(body, bytes) else response.length
            self._line.tell("answer", self._number, **head, whole=False, length=length)
            await self._stream(_slices(body) if isinstance(body, bytes) else body)

    async def _stream(self, pieces: AsyncIterator[bytes]) -> None:
        with suppress(Gone):
            try:
                async for piece in pieces:
                    for at in range(0, len(piece), PIECE):
                        await self._wanted()
                        self._line.tell("piece", self._number, memoryview(piece)[at : at + PIECE])
                await self._wanted()
                self._line.tell("end", self._number)
            except Gone:
                raise
            except Exception as error:
                log.error("an answer broke off", exc_info=error)
                self._line.tell("broken", self._number, **words(error))
            finally:
                if isinstance(pieces, AsyncGenerator):
                    await pieces.aclose()

    async def _wanted(self) -> None:
        """The worker asks for the next piece. Raises Gone where it will not."""
        while (await self._next())[0] != "next":
            pass

    async def _ask(self, what: str, **told: Any) -> Reply:
        self._line.tell(what, self._number, **told)
        return await self._next()

    async def _next(self) -> Reply:
        reply = await self._heard.get()
        if reply is None:
            self._heard.put_nowait(None)
            raise Gone("the worker process that had the connection has ended")
        return reply


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), PIECE):
        yield body[at : at + PIECE]
