"""Runs, as operators ask for them, look at them and stop them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from insitu.core.errors import Refusal
from insitu.engines.https.api.members import OPERATOR, READERS, by
from insitu.engines.https.api.numbers import seconds, whole_number
from insitu.engines.https.http import Request, Response, Route

Order = Literal["stop", "pause", "resume"]
LONGEST_WAIT = 30.0
"""Seconds that a request for events is held open at most."""


class Runs(Protocol):
    """What is done with runs, behind these requests. Called from threads; raises Refusal NOT_FOUND for unknown runs."""

    def submit(self, tables: Mapping[str, Any], name: str, by: str) -> str:
        """Checks the tables, queues a run, and returns its id. Raises Refusal BAD_REQUEST with the reason."""
        ...

    def listing(self) -> list[dict[str, Any]]:
        """All runs in short, newest first."""
        ...

    def status(self, run: str) -> dict[str, Any]:
        """Why it is waiting, and all else that is known of it now."""
        ...

    def events(self, run: str, after: int) -> tuple[list[dict[str, Any]], int]:
        """Events after the one of this number, and the number of the last; they count from 1."""
        ...

    def ended(self, run: str) -> bool:
        """Whether nothing more will happen in this run, unless somebody orders it."""
        ...

    def order(self, run: str, order: Order, by: str) -> str:
        """Stops, pauses or resumes it, and returns its status. Raises Refusal BAD_STATE where that is not possible."""
        ...

    def model(self, run: str) -> bytes:
        """The variables after the last committed round, as ``core/wire`` bytes. Raises Refusal BAD_STATE: none yet."""
        ...

    def predict(self, run: str, body: bytes, by: str) -> bytes:
        """Predictions for the examples in a body, both as ``core/wire`` bytes. Raises Refusal."""
        ...

    async def changed(self, wait: float) -> None:
        """Returns when something has happened in a run, or after so many seconds."""
        ...

    def ending(self) -> bool:
        """Whether nothing more will happen here, as the coordinator is stopping."""
        ...


class RunsApi:
    """Answers operators and viewers about runs."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def routes(self) -> list[Route]:
        """What is answered here."""
        return [
            Route("POST", "/v1/runs", OPERATOR, self.submit, "starts a run"),
            Route("GET", "/v1/runs", READERS, self.listing, "all runs"),
            Route("GET", "/v1/runs/{run}", READERS, self.status, "why is it waiting?"),
            Route("GET", "/v1/runs/{run}/events", READERS, self.events, "what happened, and happens"),
            Route("GET", "/v1/runs/{run}/model", OPERATOR, self.model, "the variables"),
            Route("POST", "/v1/runs/{run}/predict", OPERATOR, self.predict, "what the model says of examples"),
            Route("POST", "/v1/runs/{run}/stop", OPERATOR, self.stop, "ends it for good"),
            Route("POST", "/v1/runs/{run}/pause", OPERATOR, self.pause, "asks nobody anything for now"),
            Route("POST", "/v1/runs/{run}/resume", OPERATOR, self.resume, "goes on where it was"),
        ]

    async def submit(self, request: Request) -> Response:
        """Starts a run, once its tables are known to make a plan."""
        body = await request.table()
        tables, name = body.get("tables"), body.get("name", "")
        if not isinstance(tables, dict):
            raise Refusal("BAD_REQUEST", "tables is no object: give the tables of a configuration file")
        if not isinstance(name, str) or len(name) > 100 or not name.isprintable():
            raise Refusal("BAD_REQUEST", "name is no printable text of at most 100 characters")
        run = await asyncio.to_thread(self._runs.submit, tables, name, by(request))
        return Response.json({"run": run})

    async def listing(self, request: Request) -> Response:
        """All runs."""
        return Response.json({"runs": await asyncio.to_thread(self._runs.listing)})

    async def status(self, request: Request) -> Response:
        """One run, now."""
        return Response.json(await asyncio.to_thread(self._runs.status, request.arguments["run"]))

    async def events(self, request: Request) -> Response:
        """Events after a number: at once where there are any or the run has ended, else when there are, or it has.

        None after ``wait`` seconds.
        """
        run, after = request.arguments["run"], whole_number(request, "after", 0)
        left = seconds(request, "wait", 0.0, LONGEST_WAIT)
        clock = asyncio.get_running_loop().time
        until = clock() + left
        while True:
            ended = await asyncio.to_thread(self._runs.ended, run)  # before the events: all there are come after it
            found, last = await asyncio.to_thread(self._runs.events, run, after)
            if found or ended or (left := until - clock()) <= 0 or self._runs.ending():
                return Response.json({"events": found, "last": last})
            await self._runs.changed(left)

    async def model(self, request: Request) -> Response:
        """The variables, as bytes."""
        data = await asyncio.to_thread(self._runs.model, request.arguments["run"])
        return Response(200, data, {"content-type": "application/octet-stream"}, len(data))

    async def predict(self, request: Request) -> Response:
        """Examples go in as bytes, and predictions come out."""
        body = bytearray()
        if request.body is not None:
            async for piece in request.body:
                body += piece
        data = await asyncio.to_thread(self._runs.predict, request.arguments["run"], bytes(body), by(request))
        return Response(200, data, {"content-type": "application/octet-stream"}, len(data))

    async def stop(self, request: Request) -> Response:
        """Ends a run for good."""
        return await self._ordered(request, "stop")

    async def pause(self, request: Request) -> Response:
        """Holds a run."""
        return await self._ordered(request, "pause")

    async def resume(self, request: Request) -> Response:
        """Goes on with a paused run, or one that failed or was stopped."""
        return await self._ordered(request, "resume")

    async def _ordered(self, request: Request, order: Order) -> Response:
        status = await asyncio.to_thread(self._runs.order, request.arguments["run"], order, by(request))
        return Response.json({"status": status})
