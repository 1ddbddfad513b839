"""The federation as a whole: is it alive, is it ready, how is it doing?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from insitu.engines.https.api.members import READERS
from insitu.engines.https.http import Request, Response, Route

SLOW = 5.0
"""Seconds after which a database that does not answer is not waited for."""
THREADS = 4
"""Questions that are answered at a time. They have threads of their own: those that wait for a database that is away
must not be those that everything else is done in."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of Prometheus's text format."""

T = TypeVar("T")


class StatusApi:
    """Answers about the coordinator itself.

    ready    by check (``database``, ``disk``, ``leader``) what is wrong with it; empty where all is well
    metrics  Prometheus's text
    whole    leader, sites, runs, disk, uploads: what ``insitu status`` shows
    without  the same as far as it is known without the database, which may be away, given what is wrong
    """

    def __init__(
        self,
        ready: Callable[[], Mapping[str, str]],
        metrics: Callable[[], str],
        whole: Callable[[], Mapping[str, Any]],
        without: Callable[[Mapping[str, str]], Mapping[str, Any]] | None = None,
    ) -> None:
        self._ready, self._metrics, self._whole, self._without = ready, metrics, whole, without
        self._threads = ThreadPoolExecutor(THREADS, "status")
        self._asked: tuple[float, Future[Mapping[str, Any]]] | None = None
        """The whole that was asked for last, and since when: there is one at a time."""

    def routes(self) -> list[Route]:
        """What is answered here."""
        return [*self.open_routes(), Route("GET", "/v1/status", READERS, self.status, "the whole federation")]

    def open_routes(self) -> list[Route]:
        """What is answered on the port for probes as well, where whoever reaches it may ask."""
        return [
            Route("GET", "/v1/health", READERS, self.health, "is the process alive?"),
            Route("GET", "/v1/ready", READERS, self.ready, "can it do its work?"),
            Route("GET", "/v1/metrics", READERS, self.metrics, "for Prometheus"),
        ]

    async def health(self, request: Request) -> Response:
        """That this answers is the answer."""
        return Response.json({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """200, or 503 with what is wrong."""
        wrong = dict(await self._aside(self._ready))
        return Response.json({"ready": not wrong, "wrong": wrong}, 503 if wrong else 200)

    async def metrics(self, request: Request) -> Response:
        """Prometheus's text."""
        text = await self._aside(self._metrics)
        return Response(200, text.encode(), {"content-type": TEXT})

    async def status(self, request: Request) -> Response:
        """The whole federation."""
        without = self._without
        if without is None:
            return Response.json(dict(await self._aside(self._whole)))
        # What is under way may have been read before this caller's last order: its end is waited for, and one that
        # began later answers.
        before = self._asked
        if before is None or await _in_time(*before):
            if self._asked is before:
                self._asked = time.monotonic(), self._threads.submit(self._whole)
            if (asked := self._asked) is not None and await _in_time(*asked):
                return Response.json(dict(asked[1].result()))
        return Response.json(dict(await self._aside(lambda: without({}))))

    async def _aside(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


async def _in_time(since: float, asked: Future[Any]) -> bool:
    """Whether it is answered before it is slow; at once where it is so already, or was answered long ago."""
    if not asked.done():
        waiter = asyncio.wrap_future(asked)
        waiter.add_done_callback(lambda one: one.cancelled() or one.exception())  # it is told by ``asked`` itself
        await asyncio.wait({waiter}, timeout=max(0.0, since + SLOW - time.monotonic()))
    return asked.done()
