"""A worker's process: a port that accepts nothing itself, in front of a coordinator's main process.

It has no life of its own: when the main process is no more it ends at once, in the middle of whatever it does, and no
signal but SIGKILL ends it before, since those of a terminal and of systemd go to all processes of a service and the
main one alone decides what they mean.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from insitu.core.errors import InsituError
from insitu.core.federation import Blobs
from insitu.engines.https.serve import arenas
from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.port import BURST, Port
from insitu.engines.https.serve.tls import server_context
from insitu.engines.https.serve.workers import line as lines
from insitu.engines.https.serve.workers.front import Front
from insitu.engines.https.serve.workers.line import Line

log = logging.getLogger("insitu.https")

WRITERS = 4
"""Threads that wait for the disk."""
REPORT, BEAT = 1.0, 5.0
"""Seconds between two reports to the main process, where there is something new, and where there is nothing."""
FAREWELL = 3.0
"""Seconds that the main process has to read what was told last."""
ALONE = 70
"""The exit status of a worker whose main process is gone."""

Opened = Callable[[Mapping[str, Any]], Blobs]
"""The blobs that the main process uses, from what it says of them. Raises StoreError."""


def run(line: int, connections: int, opened: Opened) -> int:
    """Works on these two file descriptors of the main process's; the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    arenas.few()
    return asyncio.run(Worker(socket.socket(fileno=connections), opened).run(socket.socket(fileno=line)))


class Worker:
    """What is in a worker's process."""

    def __init__(self, way: socket.socket, opened: Opened) -> None:
        self._way, self._opened = way, opened
        self._disk = ThreadPoolExecutor(WRITERS, "disk")
        self._ended, self._dismissed = asyncio.Event(), asyncio.Event()
        self._status = 0
        self._port: Port | None = None
        self._front: Front | None = None
        self._beside: set[asyncio.Task[None]] = set()
        self._adopted = self._surplus = 0
        self._reported: tuple[Any, ...] = ()

    async def run(self, sock: socket.socket) -> int:
        """Until the main process says that it is enough; the exit status."""
        self._loop = asyncio.get_running_loop()
        self._line = await Line.on(sock, self._hear, self._lost)
        logging.getLogger("insitu").addHandler(Words(self._line, self._loop))
        await self._ended.wait()
        self._report()
        self._line.tell("bye")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._dismissed.wait(), FAREWELL)
        self._disk.shutdown(wait=False, cancel_futures=True)
        return self._status

    def _lost(self) -> None:
        if not self._ended.is_set():
            os._exit(ALONE)
        self._dismissed.set()

    def _hear(self, what: str, number: int, told: dict[str, Any], data: bytes) -> None:
        if what == "begin":
            self._do(self._begin(told))
        elif number and self._front is not None:
            self._front.hear(what, number, told, data)
        elif self._port is not None:
            if what == "cut":
                self._port.cut(told["serials"])
            elif what == "reload":
                self._reload()
            elif what == "shed":
                self._surplus = told["connections"]
            elif what == "stop":
                self._do(self._stop(told["grace"]))

    async def _begin(self, told: dict[str, Any]) -> None:
        try:
            blobs = await asyncio.to_thread(self._opened, told)
            chain, key, bundle = (Path(told[name]) for name in ("chain", "key", "bundle"))
            self._front = Front(blobs, self._on_disk, self._line)
            limits = Limits(**told["limits"])
            self._port = Port(self._front, lambda: server_context(chain, key, bundle), limits=limits, sockets=())
            self._port.parts = self._parts
            await self._port.start()
        except (InsituError, OSError) as error:
            log.error("a worker process cannot begin: %s", error)
            self._status = 1
            self._ended.set()
            return
        self._way.setblocking(False)
        self._loop.add_reader(self._way.fileno(), self._take)
        self._do(self._reports())
        self._line.tell("ready")

    def _take(self) -> None:
        """Connections that the main process has accepted."""
        assert self._port is not None
        for _ in range(BURST):
            found = lines.handed(self._way)
            if found is None:
                return
            self._adopted += 1
            sock, address = found
            if sock is None:
                self._port.counts["refused no file descriptors"] += 1
                self._port.note("files", "no file descriptor is left (ulimit -n): new connections are closed")
            else:
                self._port.adopt(sock, address)

    def _parts(self) -> bool:
        """Whether this connection is one of those that another worker should have."""
        sheds = self._surplus > 0
        self._surplus -= sheds
        return sheds

    def _reload(self) -> None:
        assert self._port is not None
        try:
            self._port.reload()
        except InsituError as error:
            log.error("a worker process cannot read the certificates anew: %s", error)

    async def _stop(self, grace: float) -> None:
        assert self._port is not None
        self._loop.remove_reader(self._way.fileno())
        self._way.close()
        await self._port.stop(grace)
        self._ended.set()

    async def _reports(self) -> None:
        since = 0.0
        while not self._ended.is_set():
            since = 0.0 if self._report(since >= BEAT) else since + REPORT
            await asyncio.sleep(REPORT)

    def _report(self, anyway: bool = True) -> bool:
        """What the metrics say of it, where that is not what they say already; whether anything was told."""
        if self._port is None:
            return False
        now = dict(self._port.counts), self._port.open, self._adopted - self._port.held
        if now == self._reported and not anyway:
            return False
        self._reported = now
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._line.tell("report", counts=now[0], open=now[1], over=now[2], cpu=used.ru_utime + used.ru_stime)
        return True

    async def _on_disk(self, function: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._disk, function)

    def _do(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)


class Words(logging.Handler):
    """Log lines go to the main process, which has the log."""

    def __init__(self, line: Line, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._line, self._loop = line, loop

    def emit(self, record: logging.LogRecord) -> None:
        """One line, from any thread; an exception is told after it."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + logging.Formatter().formatException(record.exc_info)[-1500:]
        told: dict[str, Any] = {"name": record.name, "level": record.levelno, "text": text}
        with suppress(RuntimeError):  # the loop is at its end
            self._loop.call_soon_threadsafe(lambda: self._line.tell("log", **told))
