"""A coordinator's process in a simulation: what `insitu coordinator` is made of, without sockets and threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import insitu
from insitu.core.errors import Fenced, RoundError, StoreError
from insitu.engines.https.api.chunks import Chunks
from insitu.engines.https.api.people import People
from insitu.engines.https.api.table import Table
from insitu.engines.https.api.tasks import Tasks
from insitu.engines.https.engine import Https
from insitu.engines.https.exchange import Exchange
from insitu.engines.https.roster import Sites
from insitu.store.blobs.folder import FolderBlobs
from insitu.store.ledger.sqlite import SqliteLedger
from insitu.store.sqlite import SqliteStore
from sim.baton import Baton
from sim.disk import BlobFiles, Platter
from sim.loop import Process
from sim.network import Network
from sim.study import RUN, Study
from sim.trace import Trace

LEASE, POLL = 60.0, 25.0
SWEEP, OLD = 150.0, 300.0
"""Seconds between two sweeps, and for which nobody has touched what is swept away."""


class Coordinator:
    """One life of it; the next one begins with what the last one left on the disk."""

    def __init__(
        self, process: Process, study: Study, database: Path, platter: Platter, network: Network, random: Random,
        wall: Callable[[], float], arrived: Callable[[str, bytes], None], shut_out: Callable[[list[str]], None],
        trace: Trace,
    ) -> None:  # fmt: skip
        self.process, self._study, self._random, self._trace = process, study, random, trace
        self._database, self._network, self._wall = database, network, wall
        self._files = BlobFiles(platter, process, arrived)
        self._shut_out = shut_out
        self.finished = self.done = False

    async def run(self) -> None:
        """Serves sites, and trains until the run is finished."""
        self.ledger = SqliteLedger(self._database, clock=self._wall)
        self.process.ends.append(self.ledger.close)
        assert self.ledger.lead("coordinator", 1e6)
        self.store = SqliteStore(self._database, behind=timedelta(0), fence=self.ledger.fence)
        self.process.ends.append(self.store._database.close)
        blobs = await self._blobs()
        self.exchange = Exchange(
            self.ledger, blobs, durably=self._disk, aside=self._disk, wall=self._wall, lease=LEASE, poll=POLL,
            say=lambda level, text, **fields: self._trace.say("coordinator", text),
        )  # fmt: skip
        self.blobs = blobs
        self.people = People(self.ledger, lambda who, what, data: None, self._gone)
        self.people.refresh()
        self._shut_out([member.name for member in self.people.members() if member.revoked is not None])
        self.chunks = Chunks(self.exchange, self._disk)
        table = Table([*Tasks(self.exchange).routes(), *self.chunks.routes()], self.people)
        self._network.listening = (self.process, table)
        self.process.ends.append(self._network.down)
        self._trace.say("coordinator", "listens")
        self.process.spawn(self._refresh(), "refresh")
        self.process.spawn(self._sweep(), "sweep")
        await self._enough()
        await self._train()
        await self._forget()
        self.done = True
        await asyncio.get_running_loop().create_future()  # goes on serving

    async def _refresh(self) -> None:
        """Members that are new, and those who were shut out, are known within seconds."""
        while True:
            await asyncio.sleep(5)
            with suppress(StoreError):
                await self._disk(self.people.refresh)

    def _gone(self, serials: list[str]) -> None:
        names = [m.name for m in self.ledger.members() if m.serial in serials and m.revoked is not None]
        self._trace.say("coordinator", f"shuts out {', '.join(names)}")

        async def shut_out() -> None:
            for name in names:
                await self.exchange.revoked(name)
            self._shut_out(names)

        self.process.spawn(shut_out(), "shuts out")

    async def _sweep(self) -> None:
        """Chunks that nobody wants go after a while."""
        while True:
            await asyncio.sleep(SWEEP)
            with suppress(StoreError):
                await self.swept(OLD)

    async def swept(self, older: float) -> int:
        """How many chunks and parts went."""
        needed = await self.exchange.needed()
        return int(await self._disk(lambda: self.blobs.sweep(needed, older)))

    async def _forget(self) -> None:
        """The run is finished: nobody asks for its calls any more."""
        while True:
            with suppress(StoreError):
                await self.exchange.forget(RUN, 2**62)
                return
            await asyncio.sleep(5)

    async def _blobs(self) -> FolderBlobs:
        while True:
            try:
                return FolderBlobs(Path("/blobs"), files=self._files)
            except StoreError as error:
                self._trace.say("coordinator", f"no blobs: {type(error).__name__}")
                await asyncio.sleep(5)

    async def _enough(self) -> None:
        """The run begins when all of its sites have said what they have, or were shut out."""
        while not self.ledger.roster(RUN):
            members = {m.name: m for m in self.ledger.members()}
            there = [name for name in self._study.names if members[name].declared]
            if all(name in there or members[name].revoked is not None for name in self._study.names):
                self.ledger.admit(RUN, there, 1)
            await asyncio.sleep(4)

    async def _train(self) -> None:
        """As ``federation.live``: what holds a run up does not end it."""
        wait = 1.0
        while not self.finished:
            try:
                await Baton(self.process, self._once).run()
                self.finished = True
            except Fenced:
                raise
            except (StoreError, RoundError) as error:
                self._trace.say("coordinator", f"the run is held up: {type(error).__name__}: {str(error)[:80]}")
                await asyncio.sleep(wait)
                wait = min(30.0, 2 * wait)
        self._trace.say("coordinator", "the run is finished")

    def _once(self, call: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        study = self._study
        known = any(one["id"] == RUN for one in self.store.runs())
        sites = Sites(self.ledger, RUN)
        if known:
            self.store.update(RUN, clients=len(sites))
        insitu.run(
            study.plan(), sites, rounds=study.rounds, seed=study.tables["run"]["seed"],
            engine=Https(self.exchange, RUN, study.tables, {}, call), store=self.store, observers=[],
            resume=RUN if known else None, id=RUN,
        )  # fmt: skip

    async def _disk(self, function: Callable[[], Any]) -> Any:
        """As a thread would: a while later, and known a while after that."""
        await asyncio.sleep(self._random.expovariate(1 / 0.004))
        self.process.check()
        try:
            return function()
        finally:
            await asyncio.sleep(self._random.expovariate(1 / 0.002))
