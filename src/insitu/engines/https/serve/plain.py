"""A plain port for probes: health, readiness and metrics, to whoever reaches it. It belongs on a loopback address."""

from __future__ import annotations

import asyncio

from aiohttp import web

from insitu.core.errors import ConfigError, Refusal
from insitu.engines.https.api.table import Table
from insitu.engines.https.http import Response
from insitu.engines.https.serve import messages
from insitu.engines.https.serve.limits import Limits


class PlainPort:
    """Serves what a `Table` answers to local callers, over HTTP."""

    def __init__(self, table: Table, host: str, port: int) -> None:
        self.table, self.host, self.port = table, host, port
        self._limits = Limits(connections=64, keepalive=30.0)
        self._server: messages.Server | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. Raises ConfigError where the port is taken."""
        self._server = messages.Server(self._answer, **messages.handler_arguments(self._limits))
        try:
            self._listener = await asyncio.get_running_loop().create_server(self._server, self.host, self.port)
        except OSError as error:
            text = f"[metrics] listen: {self.host}:{self.port} cannot be listened at: {error.strerror}"
            raise ConfigError(f"{text}: give another port") from error

    async def stop(self) -> None:
        """Ends it at once."""
        if self._listener is not None and self._server is not None:
            self._listener.close()
            await self._server.shutdown(0.5)
            await self._listener.wait_closed()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        address = str((request.transport.get_extra_info("peername") or ("",))[0]) if request.transport else ""
        try:
            told = messages.read(request, None, address, self._limits)
        except Refusal as refusal:
            response = Response.refused(refusal)
        else:
            response = await self.table.handle(told, local=True)
        return await messages.send(request, response, False, self._limits)
