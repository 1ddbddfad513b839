"""The federation as a whole: is it alive, is it ready, how is it doing?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from insitu.engines.https.api.members import READERS
from insitu.engines.https.http import Request, Response, Route

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of Prometheus's text format."""


class StatusApi:
    """Answers about the coordinator itself.

    ready    by check (``database``, ``disk``, ``leader``) what is wrong with it; empty where all is well
    metrics  Prometheus's text
    whole    leader, sites, runs, disk, uploads: what ``insitu status`` shows
    """

    def __init__(
        self,
        ready: Callable[[], Mapping[str, str]],
        metrics: Callable[[], str],
        whole: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._ready, self._metrics, self._whole = ready, metrics, whole

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
        return Response.json(dict(await asyncio.to_thread(self._whole)))
