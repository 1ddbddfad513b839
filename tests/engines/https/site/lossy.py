"""A coordinator in this process with its real table, ledger and blobs; and a network that loses, doubles and cuts."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from random import Random

import numpy as np

import insitu
from insitu.algorithms.scaffold import Scaffold
from insitu.core import failpoints
from insitu.core.federation import Member
from insitu.data import Clients
from insitu.engines.https import Https
from insitu.engines.https.api.chunks import Chunks
from insitu.engines.https.api.table import Table
from insitu.engines.https.api.tasks import Tasks
from insitu.engines.https.exchange import Exchange
from insitu.engines.https.http import Gone, Peer, Reply, Request
from insitu.engines.https.roster import Sites
from insitu.engines.https.site import patience
from insitu.engines.https.site.agent import Agent, Data
from insitu.engines.https.site.disk import Folder
from insitu.engines.https.site.rules import Rules
from insitu.learners.numpy import LogisticLearner
from insitu.store.blobs.folder import FolderBlobs
from insitu.store.ledger.sqlite import SqliteLedger

SITES = ("berlin", "paris", "rome")
TABLES = {"algorithm": {"name": "scaffold"}, "learner": {"name": "logistic"}, "run": {"rounds": 3}}


class Died(BaseException):
    """A process is no more."""


def clients():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 40))
    y = np.arange(60) % 3
    x[np.arange(60), y] += 2.0
    return Clients.from_arrays(x, y, [np.arange(0, 10), np.arange(10, 30), np.arange(30, 60)], ids=SITES)


def plan():
    return insitu.Plan(Scaffold(lr=0.1, epochs=1, batch_size=5), learner=LogisticLearner(), evaluate_every=0).resolve(
        clients().schema()
    )


class Lossy:
    """A site's way to the table. ``fault(method, path)`` says what happens to a request; None: nothing.

    lost: it never arrives; unheard: its answer does not; twice: it arrives twice; a number: so much of the body does.
    """

    def __init__(self, table, name, fault=lambda method, path: None):
        self.table, self.name, self.fault = table, name, fault
        self.log = []

    async def request(
        self, method, path, *, query=None, headers=None, body=None, length=None, stream=False, timeout=60.0
    ):
        fault = self.fault(method, path)
        self.log.append((method, path, len(body or b"") if fault != "lost" else 0, fault))
        await asyncio.sleep(0)
        if fault == "lost":
            raise ConnectionResetError("the request was lost")
        made = [self._made(method, path, query, headers, body, fault) for _ in range(2 if fault == "twice" else 1)]
        responses = await asyncio.gather(*(self.table.handle(one) for one in made))
        if fault == "unheard" or (isinstance(fault, float) and method == "PUT"):
            raise ConnectionResetError("the answer was lost")
        response = responses[-1]
        if stream and response.status < 400:
            return Reply(response.status, response.headers, b"", self._streamed(response.body, fault))
        return Reply(response.status, response.headers, response.body)

    def _made(self, method, path, query, headers, body, fault):
        async def pieces():
            end = int(len(body) * fault) if isinstance(fault, float) else len(body)
            for at in range(0, end, 1000):
                yield body[at : min(end, at + 1000)]
            if end < len(body):
                raise Gone("the connection broke")

        peer = Peer(self.name, "site", self.name)
        return Request(method, path, peer, query or {}, headers or {}, pieces() if body else None, len(body or b""))

    async def _streamed(self, body, fault):
        end = int(len(body) * fault) if isinstance(fault, float) else len(body)
        for at in range(0, end, 1000):
            yield body[at : min(end, at + 1000)]
        if end < len(body):
            raise ConnectionResetError("the download broke")

    async def close(self):
        pass


class Federation:
    """What survives, in ``folder``; coordinator and sites are started by ``running``."""

    def __init__(self, folder):
        self.folder, self.clients, self.plan = folder, clients(), plan()
        self.ledger, self.blobs = SqliteLedger(folder / "ledger.db"), FolderBlobs(folder / "blobs")
        self.sent, self.said, self.notes = [], [], []
        for place, name in enumerate(SITES):
            declared = {"examples": len(self.clients.at(place).data), "holdout": 0, "features": None, "classes": None}
            self.ledger.add_member(Member(name, "site", name, 0.0, declared))
        self.ledger.admit("run", SITES, 1)

    def close(self):
        self.ledger.close()

    @contextmanager
    def running(self, fault=lambda name: lambda method, path: None, rules=None):
        """A coordinator, and its sites at work; a site that dies is started again with the same folder."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        self.call = lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

        async def at_once(function):
            await asyncio.sleep(0)
            return function()

        async def start():
            exchange = Exchange(self.ledger, self.blobs, durably=at_once, aside=at_once, poll=2.0, lease=0.06)
            chunks = Chunks(exchange, at_once)
            table = Table(
                [*Tasks(exchange).routes(), *chunks.routes()], lambda serial, name: Peer(name, "site", serial)
            )
            self.transports = {name: Lossy(table, name, fault(name)) for name in SITES}
            self.exchange = exchange
            return [asyncio.ensure_future(self._site(name, at_once, rules or Rules())) for name in SITES]

        async def stop(tasks):
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in [*tasks, *rest]:
                task.cancel()
            await asyncio.gather(*tasks, *rest, return_exceptions=True)

        tasks = self.call(start())
        try:
            yield self
        finally:
            self.call(stop(tasks))
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _site(self, name, at_once, rules):
        place = SITES.index(name)
        while True:
            client = self.clients.at(place)
            data = Data(lambda client=client: client, {"examples": len(client.data), "holdout": 0})
            agent = Agent(
                self.transports[name], data, lambda told: self.plan, rules, Folder(self.folder / name), compute=at_once,
                random=Random(name), say=self.said.append, versions={"insitu": "0.1.0"}, poll=2.0,
                note=lambda what, told: self.notes.append((name, what, told)),
            )  # fmt: skip
            try:
                await agent.run()
            except Died:
                self.said.append(f"{name} died")

    def run(self, rounds=3, store=None):
        engine = Https(self.exchange, "run", TABLES, {}, self.call)
        known = store is not None and any(one["id"] == "run" for one in store.runs())
        return insitu.run(
            self.plan, Sites(self.ledger, "run"), rounds=rounds, engine=engine, seed=5, store=store, observers=[],
            id="run", resume="run" if known else None,
        )  # fmt: skip


def quick(monkeypatch):
    """Pauses between attempts take no time worth the name."""
    monkeypatch.setattr(patience, "SHORTEST", 0.001)
    monkeypatch.setattr(patience, "LONGEST", 0.01)


def dies_at(monkeypatch, name, times):
    """A failpoint at which whoever comes by dies, the first few times."""
    left = [times]

    def hit(where):
        if where == name and left[0]:
            left[0] -= 1
            raise Died(where)

    monkeypatch.setattr(failpoints, "hit", hit)
    return left
