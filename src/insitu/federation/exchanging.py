"""The exchange with the sites, in a coordinator's process: on its loop, with threads for what would hold that up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from insitu.core import checks
from insitu.core.errors import StoreError
from insitu.core.protocols import Engine
from insitu.core.types import Population
from insitu.engines.https.api.chunks import Chunks
from insitu.engines.https.api.tasks import Tasks
from insitu.engines.https.engine import Https
from insitu.engines.https.exchange import Exchange
from insitu.engines.https.http import Route
from insitu.engines.https.roster import Sites
from insitu.federation.building import fingerprints
from insitu.federation.keeping import Kept
from insitu.federation.logs import Tell
from insitu.federation.settings import Settings

WRITERS, CHECKERS = 8, 2
"""Threads that wait for the disk, and that look at updates."""
OLD, AT_WORK = 86400.0, 900.0
"""Seconds for which chunks and parts of chunks are kept that no run wants: a site may be about to go on with one."""
EVERYTHING = 2**62
"""A round that no run comes to."""


class Exchanging:
    """What trains: see ``backend.Backend``. Made, started and stopped on the loop; the rest is for any thread."""

    def __init__(self, kept: Kept, settings: Settings, code: Path, tell: Tell) -> None:
        self._kept, self._code, self._tell = kept, code, tell
        self._loop = asyncio.get_running_loop()
        self._writers = ThreadPoolExecutor(WRITERS, "disk")
        self._checkers = ThreadPoolExecutor(CHECKERS, "check")
        self._held: set[asyncio.Task[Any]] = set()
        self._used: dict[str, float] = {}
        """When each run was last worked on, by the monotonic clock."""
        self._cleared: set[str] = set()
        """Finished runs of which nothing is kept but the result."""
        self.exchange = Exchange(
            kept.ledger, kept.blobs, durably=self._durably, aside=self._aside, lease=settings.sites.lease,
            poll=settings.sites.poll, largest=checks.size(largest=settings.sites.largest), say=tell,
        )  # fmt: skip
        self._tasks = Tasks(self.exchange)
        self._chunks = Chunks(self.exchange, self._durably, settings.sites.uploads)

    async def stop(self) -> None:
        """Ends its threads, when nobody asks anything any more."""
        for task in list(self._held):
            task.cancel()
        self._writers.shutdown(wait=False, cancel_futures=True)
        self._checkers.shutdown(wait=False, cancel_futures=True)

    def routes(self) -> list[Route]:
        """What sites ask."""
        return [*self._tasks.routes(), *self._chunks.routes()]

    # ------------------------------------------------------------ for the desk

    def engine(self, run: str, tables: Mapping[str, Any]) -> Engine:
        """The engine for a run."""
        self._used[run] = time.monotonic()
        self._cleared.discard(run)
        return Https(self.exchange, run, tables, fingerprints(tables, self._code), self._call, self._kept.folder)

    def population(self, run: str) -> Population:
        """The sites of its roster."""
        return Sites(self._kept.ledger, run)

    def status(self, run: str) -> Mapping[str, Any]:
        """What is open in it."""
        return self.exchange.status(run)

    def halt(self, run: str, why: str) -> None:
        """Its session raises Halted."""
        self._loop.call_soon_threadsafe(self.exchange.halt, run, why)

    def release(self, run: str) -> None:
        """It may be worked on again."""
        self._loop.call_soon_threadsafe(self.exchange.release, run)

    def finished(self, run: str) -> None:
        """Nobody will ask for its calls again; waits until they are forgotten (not for the loop's own thread).

        The updates of the last round stay for a day, for whoever verifies it (`insitu federation verify`).
        """
        self._call(self._forget(run))

    # ------------------------------------------------------------ for the coordinator

    async def sweep(self) -> int:
        """Removes chunks that no run wants and nobody has touched for long; how many. Raises StoreError."""
        await self._clear_finished()
        needed = await self.exchange.needed()
        return int(await self._durably(lambda: self._kept.blobs.sweep(needed, OLD)))

    def contacts(self) -> Mapping[str, Mapping[str, Any]]:
        """By site when it was last heard, and what it is doing."""
        return self.exchange.contacts()

    def revoked(self, names: list[str]) -> None:
        """These are shut out (on the loop)."""
        for name in names:
            self._hold(self.exchange.revoked(name))

    def drain(self) -> None:
        """No task is handed out any more (on the loop)."""
        self.exchange.drain()

    def counters(self) -> dict[str, float]:
        """For the metrics: what only grows."""
        counts = self.exchange.counts
        named = {
            "accepted": "updates_accepted", "duplicates": "updates_duplicate", "failed": "tasks_failed",
            "bytes_in": "bytes_in", "bytes_out": "bytes_out",
        }  # fmt: skip
        return {f"insitu_{name}_total": counts[key] for key, name in named.items()}

    def gauges(self) -> dict[str, float]:
        """For the metrics: what is now."""
        return {"insitu_uploads": self._chunks.uploads}

    def refused(self) -> dict[str, int]:
        """Updates that did not count, by code."""
        counts = self.exchange.counts
        return {key.partition(":")[2]: n for key, n in counts.items() if key.startswith("refused:")}

    # ------------------------------------------------------------ inside

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _clear_finished(self) -> None:
        """Lets go of what runs that have finished long ago have left: the last round's updates, and all documents."""
        now = time.monotonic()
        for run in await self._durably(
            lambda: [r.run for r in self._kept.ledger.submitted() if r.status == "finished"]
        ):
            used = self._used.get(run)
            if run in self._cleared or (used is not None and now - used < AT_WORK):  # predictions, say
                continue
            try:
                calls = await self._durably(partial(self._kept.ledger.calls, run))
                trained = [call.opened for call in calls if call.key.kind == "train"]
                if trained and self.exchange.wall() - max(trained) < OLD:
                    continue
                if calls:
                    await self.exchange.forget(run, EVERYTHING, ended=True)
                if await self._durably(partial(self.exchange.leftovers.discard_all, run)):
                    self._cleared.add(run)
            except StoreError as error:
                self._tell("warning", "what a finished run has left is still kept", run=run, error=str(error))
        await self._durably(self.exchange.shelf.clear)

    async def _forget(self, run: str) -> None:
        try:
            calls = await self._durably(partial(self._kept.ledger.calls, run))
            last = max((call.key.round for call in calls if call.key.kind == "train"), default=EVERYTHING)
            await self.exchange.forget(run, last, ended=True)
            await self._durably(self.exchange.shelf.clear)
        except StoreError as error:
            self._tell("warning", "a finished run's calls are still kept", run=run, error=str(error))

    async def _durably(self, function: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._writers, function)

    async def _aside(self, function: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._checkers, function)

    def _hold(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._held.add(task)
        task.add_done_callback(self._held.discard)
