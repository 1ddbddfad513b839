"""The federation as a whole: is it alive, is it ready, how is it doing?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from insitu.engines.https.api.members import READERS
from insitu.engines.https.http import Request, Response, Route

SLOW = 5.0
"""Seconds after which a database that does not answer is not waited for."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of Prometheus's text format."""


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
        wrong = dict(await asyncio.to_thread(self._ready))
        return Response.json({"ready": not wrong, "wrong": wrong}, 503 if wrong else 200)

    async def metrics(self, request: Request) -> Response:
        """Prometheus's text."""
        text = await asyncio.to_thread(self._metrics)
        return Response(200, text.encode(), {"content-type": TEXT})

    async def status(self, request: Request) -> Response:
        """The whole federation."""
        asked = asyncio.ensure_future(asyncio.to_thread(self._whole))
        done, _ = await asyncio.wait({asked}, timeout=None if self._without is None else SLOW)
        if done or self._without is None:
            return Response.json(dict(asked.result()))
        asked.add_done_callback(lambda one: one.cancelled() or one.exception())  # nobody waits for it any more
        return Response.json(dict(await asyncio.to_thread(self._without, {})))
