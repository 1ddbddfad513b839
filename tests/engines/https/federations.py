"""A federation in this process: a ledger and blobs in memory, an exchange on a loop of its own, sites as coroutines."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core.errors import BlobError, Refusal, StoreError
from insitu.core.federation import Member
from insitu.core.types import Task, Update
from insitu.data import Clients
from insitu.engines.https import Https
from insitu.engines.https.calls.accounts import Ask
from insitu.engines.https.calls.values import Message
from insitu.engines.https.exchange import Exchange
from insitu.engines.https.roster import Sites
from insitu.engines.https.wire.packing import pack, unpack
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.client import work
from insitu.rounds.plan import Plan

TABLES = {"algorithm": {"name": "fedavg"}, "run": {"rounds": 3, "engine": "inline"}, "data": {"source": "x"}}
NAMES = ("a", "b", "c", "d")


class MemoryLedger:
    """What an exchange asks of a ledger; ``trouble`` is raised by the next writes, before anything is written."""

    def __init__(self):
        self.kept, self.documents, self.people, self.places = {}, {}, {}, defaultdict(list)
        self.trouble = []
        self.writes = 0

    def _write(self):
        self.writes += 1
        if self.trouble:
            raise self.trouble.pop(0)

    def open_call(self, call):
        self._write()
        if call.key in self.kept:
            raise StoreError("the call is there already")
        self.kept[call.key] = replace(call, entries=())

    def append(self, key, entries):
        self._write()
        call = self.kept[key]
        for entry in entries:
            if entry.seq != len(call.entries) or (entry.client and entry.client in {e.client for e in call.entries}):
                raise StoreError("a seq or client is taken")
            call = replace(call, entries=(*call.entries, entry))
        self.kept[key] = call

    def calls(self, run):
        return [call for key, call in self.kept.items() if key.run == run]

    def forget(self, run, before):
        self._write()
        self.kept = {k: c for k, c in self.kept.items() if k.run != run or k.round >= before}

    def submitted(self):
        return [type("Run", (), {"run": run, "status": "running"}) for run in {key.run for key in self.kept}]

    def keep(self, digest, text, run):
        self._write()
        self.documents[digest] = text

    def discard(self, run, digests=None):
        self._write()
        named = {digest for call in self.kept.values() for digest in call.message.values()}
        named |= {entry.data.get("manifest") for call in self.kept.values() for entry in call.entries}
        useless = (set(self.documents) if digests is None else set(digests)) - named
        for digest in useless:
            self.documents.pop(digest, None)
        return len(useless)

    def document(self, digest):
        return self.documents.get(digest)

    def members(self):
        return list(self.people.values())

    def declare(self, name, declared, now):
        self.people[name] = replace(self.people[name], declared=declared, seen=now)

    def roster(self, run):
        return list(self.places[run])

    def admit(self, run, names, since):
        known = {name for name, _ in self.places[run]}
        self.places[run] += [(name, since) for name in names if name not in known]

    def enrol(self, name, examples, **more):
        self.people[name] = Member(name, "site", name, 0.0, {"examples": examples, "holdout": 0, **more})


class MemoryBlobs:
    """Chunks in memory."""

    near = True

    def __init__(self):
        self.whole = {}
        self.reads = 0

    def length(self, digest):
        return len(self.whole[digest]) if digest in self.whole else None

    def put(self, data):
        digest = hashlib.sha256(data).hexdigest()
        self.whole[digest] = bytes(data)
        return digest

    def read(self, digest, offset=0, length=None):
        self.reads += 1
        if digest not in self.whole:
            raise BlobError(f"there is no blob {digest}")
        end = None if length is None else offset + length
        return self.whole[digest][offset:end]

    def fill(self, digest, offset, room):
        data = self.read(digest, offset, len(room))
        room[: len(data)] = data
        return len(data)

    def arrived(self, owner, digest):
        return 0

    def sync(self):
        pass

    def shown(self, digest):
        assert digest in self.whole

    def remove(self, digests):
        for digest in digests:
            self.whole.pop(digest, None)


@dataclass
class Federation:
    """Everything that survives a coordinator, and the coordinator of the moment."""

    clients: Clients
    plan: Plan
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    memories: dict = field(default_factory=dict)
    """By site and task: what sites keep, at their own places."""
    asked: list = field(default_factory=list)
    """What sites were asked, in the order in which they heard of it."""
    exchange: Exchange | None = None
    folder: Path | None = None
    """Where the model lies while sites are at work."""

    def __post_init__(self):
        for place in range(len(self.clients)):
            client = self.clients.at(place)
            holdout = 0 if client.holdout is None else len(client.holdout)
            self.ledger.enrol(client.id, len(client.data), holdout=holdout)
        self.names = [self.clients.id_at(place) for place in range(len(self.clients))]
        self.ledger.admit("run", self.names, 1)

    @contextmanager
    def coordinator(self, sites=None, **more):
        """A loop in a thread with a new exchange, and these sites at work (name → how it behaves)."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        async def start():
            async def at_once(function):
                await asyncio.sleep(0)
                return function()

            self.exchange = Exchange(self.ledger, self.blobs, durably=at_once, aside=at_once, poll=5.0, **more)
            behaviours = dict.fromkeys(self.names, honest) | dict(sites or {})
            return [asyncio.ensure_future(serve(self, name, how)) for name, how in behaviours.items() if how]

        async def stop(tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.call = lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)
        tasks = self.call(start())
        try:
            yield self
        finally:
            self.call(stop(tasks))
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def run(self, rounds=3, seed=11, store=None, id="run", **more):
        observers = more.pop("observers", [])
        known = store is not None and any(one["id"] == id for one in store.runs())
        self.ledger.admit(id, self.names, 1) if not self.ledger.roster(id) else None
        engine = Https(self.exchange, id, TABLES, {}, self.call, self.folder)
        return insitu.run(
            self.plan, Sites(self.ledger, id), rounds=rounds, engine=engine, seed=seed, store=store,
            observers=observers, id=id, resume=id if known else None, **more,
        )  # fmt: skip


def changed(update, **how):
    """An update with something else in its value."""
    return Update({**update.value, **how.get("value", {})}, {**update.weight, **how.get("weight", {})}, update.metrics)


async def honest(federation, site, told):
    """Does the task and sends what came of it."""
    await send(federation, site, told, answered(federation, site, told))


async def refuses(federation, site, told):
    await federation.exchange.fail(site, told["task"], "SITE_REFUSED", "not today")


async def silent(federation, site, told):
    await asyncio.sleep(3600)


def answered(federation, site, told):
    blobs = federation.blobs
    message = unpack(json.loads(federation.ledger.document(told["message"])), blobs.read)
    client = federation.clients.at(federation.names.index(site))
    names = ("run", "round", "version", "kind")
    task = Task(
        *(told[name] for name in names), site, message, told["seed"], told["index"], told["place"], told["block"],
        told["discount"],
    )  # fmt: skip
    memory = None if told["memory"] is None else federation.memories[site, told["memory"]["task"]]
    answer = work(federation.plan, task, client, memory)
    if answer.memory is not None and told["kind"] == "train":
        federation.memories[site, told["task"]] = answer.memory
    return answer


def manifest_of(told, answer, keep, **changes):
    update, keeps = answer.update, answer.memory is not None and told["kind"] == "train"
    packed = pack(update.value, "update", keep)
    about = {"task": told["task"], "base": told["message"], "keeps": keeps}
    return {**packed, **about, "weight": dict(update.weight), "metrics": dict(update.metrics), **changes}


async def send(federation, site, told, answer, **changes):
    """Brings the chunks and then the manifest; whether it was known already."""
    exchange = federation.exchange

    def keep(data):
        digest = hashlib.sha256(data).hexdigest()
        if not exchange.has(site, digest):
            with exchange.arriving(site, told["task"], digest) as whole:
                federation.blobs.put(data)
                whole()
        return digest

    return await exchange.accept(site, told["task"], manifest_of(told, answer, keep, **changes))


async def serve(federation, site, how):
    """A site: asks, does, asks again. What is refused it drops."""
    while True:
        told = await federation.exchange.next_task(site, 5.0)
        if told is None:
            continue
        federation.asked.append((site, told["kind"], told["round"], told["task"]))
        try:
            await how(federation, site, told)
        except Refusal as refusal:
            federation.asked.append((site, refusal.code, told["round"], told["task"]))
            await asyncio.sleep(0.001)


def tables(n=60, sites=NAMES, features=5, holdout=0.0, classes=3, seed=0):
    """Sites of different sizes with a little task of their own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    y = np.arange(n) % classes
    x[np.arange(n), y] += 2.0
    cuts = np.cumsum(np.arange(1, len(sites) + 1))
    parts = np.split(rng.permutation(n), (n * cuts[:-1] / cuts[-1]).astype(int))
    return Clients.from_arrays(x, y, parts, ids=sites, holdout=holdout)


def fedavg(clients, **more):
    options = {"learner": LogisticLearner(), "evaluate_every": 0} | more
    return Plan(FedAvg(lr=0.1, epochs=1, batch_size=4), **options).resolve(clients.schema())


def inline(plan, clients, rounds=3, seed=11, **more):
    """The same run on the engine that every other one is compared with."""
    return insitu.run(plan, clients, rounds=rounds, engine="inline", seed=seed, store=None, observers=[], **more)


def ask(name, message, index=0):
    """An ask of a call in round 1, for tests that open calls by hand."""
    about = {"run": "run", "round": 1, "version": 0, "kind": "train", "index": index, "place": index, "block": 0}
    return Ask(name, message.digest, {**about, "seed": 7, "discount": 1.0, "memory": None})


def packed_message(federation, tree):
    """A message in ledger and blobs."""
    message = Message.of(pack(tree, "message", federation.blobs.put))
    federation.ledger.keep(message.digest, message.text, "run")
    return message
