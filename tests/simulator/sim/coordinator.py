"""A coordinator's process in a simulation: what `insitu coordinator` is made of, without sockets and threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
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


class Coordinator:
    """One life of it; the next one begins with what the last one left on the disk."""

    def __init__(
        self, process: Process, study: Study, database: Path, platter: Platter, network: Network, random: Random,
        wall: Callable[[], float], arrived: Callable[[str, bytes], None], trace: Trace,
    ) -> None:  # fmt: skip
        self.process, self._study, self._random, self._trace = process, study, random, trace
        self._database, self._network, self._wall = database, network, wall
        self._files = BlobFiles(platter, process, arrived)
        self.finished = False

    async def run(self) -> None:
        """Serves sites, and trains until the run is finished."""
        self.ledger = SqliteLedger(self._database, clock=self._wall)
        self.process.ends.append(self.ledger.close)
        assert self.ledger.lead("coordinator", 30.0)
        self.store = SqliteStore(self._database, behind=timedelta(0), fence=self.ledger.fence)
        self.process.ends.append(self.store._database.close)
        blobs = await self._blobs()
        self.exchange = Exchange(
            self.ledger, blobs, durably=self._disk, aside=self._disk, wall=self._wall, lease=LEASE, poll=POLL,
            say=lambda level, text, **fields: self._trace.say("coordinator", text),
        )  # fmt: skip
        self.blobs = blobs
        self.people = People(self.ledger, lambda who, what, data: None)
        self.people.refresh()
        self.chunks = Chunks(self.exchange, self._disk)
        table = Table([*Tasks(self.exchange, []).routes(), *self.chunks.routes()], self.people)
        self._network.listening = (self.process, table)
        self.process.ends.append(self._network.down)
        self._trace.say("coordinator", "listens")
        await self._enough()
        await self._train()

    async def _blobs(self) -> FolderBlobs:
        while True:
            try:
                return FolderBlobs(Path("/blobs"), files=self._files)
            except StoreError as error:
                self._trace.say("coordinator", f"no blobs: {type(error).__name__}")
                await asyncio.sleep(5)

    async def _enough(self) -> None:
        """The run begins when all of its sites have said what they have."""
        while not self.ledger.roster(RUN):
            declared = [member.name for member in self.ledger.members() if member.declared]
            if set(self._study.names) <= set(declared):
                self.ledger.admit(RUN, list(self._study.names), 1)
            await asyncio.sleep(1)

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
