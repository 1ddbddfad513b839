"""A coordinator that says what a test wants it to, and an agent that runs under a clock of its own."""

from __future__ import annotations

import asyncio
import heapq
import json
from random import Random

import numpy as np

from insitu.core.types import Client
from insitu.core.types import Data as Examples
from insitu.engines.https.http import Reply
from insitu.engines.https.site.agent import Agent, Data
from insitu.engines.https.site.disk import Folder
from insitu.engines.https.site.rules import Rules

HELLO = {"name": "berlin", "poll": 25, "lease": 60}


class Clock(asyncio.SelectorEventLoop):
    """A loop in which nobody waits: where nothing is to be done, time goes on to what is due next."""

    def __init__(self):
        super().__init__()
        self.passed, self.turns = 0.0, 0

    def time(self):
        return self.passed

    def _run_once(self):
        self.turns += 1
        assert self.turns < 30_000, f"something goes round and round without a pause, at {self.passed:.1f} s"
        if not self._ready and self._scheduled:
            self.passed = max(self.passed, heapq.nsmallest(1, self._scheduled)[0]._when)
        super()._run_once()


def run(coroutine, seconds=1e6):
    """What it gives, or None where so much of its own time has passed; and how much has."""
    loop = Clock()
    asyncio.set_event_loop(loop)
    try:
        found = loop.run_until_complete(_bounded(coroutine, seconds))
        return found, loop.passed
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _bounded(coroutine, seconds):
    try:
        return await asyncio.wait_for(coroutine, seconds)
    except TimeoutError:
        return None


def says(value, status=200, **headers):
    return Reply(status, headers, value if isinstance(value, bytes) else json.dumps(value).encode())


def refuses(code, status=409, **headers):
    return says({"error": code, "message": f"told so: {code}"}, status, **headers)


class Coordinator:
    """``answers[path]``: a list of replies, the last of which is said again and again; or a function of the request."""

    def __init__(self, **answers):
        self.answers = {"hello": [says(HELLO)], "next": [self.nothing], "bye": [says({})], **answers}
        self.log = []

    async def nothing(self, timeout):
        await asyncio.sleep(timeout - 30)
        return Reply(204, {}, b"")

    async def request(self, method, path, *, body=None, timeout=60.0, **_):
        what = path.rpartition("/")[2] if path.startswith("/v1/tasks") else path.removeprefix("/v1/")
        await asyncio.sleep(0)  # as a network does: others have their turn
        self.log.append((what, None if body is None else json.loads(body)))
        left = self.answers[what]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if callable(answer):
            return await answer(timeout)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def count(self, what):
        return sum(name == what for name, _ in self.log)

    async def close(self):
        pass


class Site:
    """An agent and what it said."""

    def __init__(self, coordinator, folder, rules=None, note=None, build=None):
        self.said, self.notes = [], []
        client = Client("berlin", Examples(np.ones((2, 1)), np.zeros(2)))

        async def at_once(function):
            return function()

        self.agent = Agent(
            coordinator, Data(lambda: client, {"examples": 2}), build or (lambda told: None), rules or Rules(),
            Folder(folder), compute=at_once, random=Random(1), say=self.said.append, versions={},
            note=note or (lambda what, told: self.notes.append((what, told))),
        )  # fmt: skip
