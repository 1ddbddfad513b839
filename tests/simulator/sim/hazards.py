"""What befalls a simulation, each in a task of its own: deaths, partitions, full disks, clocks, strangers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

from insitu.core.errors import StoreError
from insitu.core.federation import Member
from insitu.engines.https.http import Peer
from insitu.store.ledger.sqlite import SqliteLedger
from sim.checks import Broken
from sim.network import Fate, Sent
from sim.site import serial_of

if TYPE_CHECKING:
    from sim.world import World

WHEN_FULL = 200
"""Bytes that fit on a disk that is said to be full."""


class Hazards:
    """All of them, as often as the world's ``chances`` say."""

    def __init__(self, world: World) -> None:
        self._world, self._random = world, Random(f"{world.seed} hazards")

    def all(self) -> list[Coroutine[Any, Any, None]]:
        """To be run until everything is to work."""
        return [
            self._deaths(), self._partings(), self._disks(), self._clocks(), self._strangers(), self._later(),
        ]  # fmt: skip

    async def _every(self, mean: float) -> None:
        """So long until the next one; for ever where there are none."""
        if not mean:
            await self._world.loop.create_future()
        await asyncio.sleep(self._random.expovariate(1 / mean))

    async def _deaths(self) -> None:
        """Between any two callbacks; and processes that stand still for a while."""

        async def of(names: tuple[str, ...], mean: float) -> None:
            while True:
                await self._every(mean)
                process = self._world.processes.get(self._random.choice(names))
                if process is not None and process.alive:
                    process.fatal = self._random.randint(0, 30)

        async def pauses() -> None:
            while True:
                await self._every(self._world.chances.pause)
                process = self._world.processes.get(self._random.choice(("coordinator", *self._world.study.names)))
                if process is not None and process.alive and not process.paused:
                    self._world.trace.say(process.name, "stands still")
                    process.pause()
                    await asyncio.sleep(self._random.expovariate(1 / 60))
                    if process.alive:
                        self._world.trace.say(process.name, "goes on")
                        process.wake()

        own = of(("coordinator",), self._world.chances.coordinator_dies)
        await asyncio.gather(own, of(self._world.study.names, self._world.chances.site_dies), pauses())

    async def _partings(self) -> None:
        while True:
            await self._every(self._world.chances.parted)
            some = self._random.sample(self._world.study.names, self._random.randint(1, len(self._world.study.names)))
            how = self._random.choice(("both", "there", "back"))
            self._world.trace.say("network", f"is parted from {', '.join(some)}: {how}")
            self._world.network.apart.update(dict.fromkeys(some, how))
            await asyncio.sleep(self._random.expovariate(1 / 60))
            for name in some:
                self._world.network.apart.pop(name, None)

    async def _disks(self) -> None:
        while True:
            await self._every(self._world.chances.full)
            name = self._random.choice(("coordinator", *self._world.study.names))
            self._world.trace.say(name, "has a full disk")
            self._world.platters[name].room = self._world.platters[name].used() + self._random.randint(0, WHEN_FULL)
            await asyncio.sleep(self._random.expovariate(1 / 60))
            self._world.platters[name].room = 10**9

    async def _clocks(self) -> None:
        while True:
            await self._every(self._world.chances.clock)
            self._world.offset += self._random.choice((-3600, -10, 10, 300, 3600))
            self._world.trace.say("world", f"the wall clock is off by {self._world.offset:g} s")

    async def _strangers(self) -> None:
        """Somebody plays requests again that others have sent: under no name of ours, or under another site's."""
        while True:
            await self._every(self._world.chances.stranger)
            if not self._world.out:
                continue
            sent = self._random.choice(self._world.out)
            other = self._random.choice(self._world.study.names)
            peer = self._random.choice((None, Peer(other, "site", "00ff"), Peer(other, "site", serial_of(other))))
            if "/tasks/" not in sent.path or (peer and sent.peer and peer.serial == sent.peer.serial):
                continue
            again = Sent(sent.method, sent.path, peer, sent.query, sent.headers, sent.body)
            connection = self._world.network._begin(again, Fate())
            if connection is not None:
                self._world.background.append(asyncio.ensure_future(self._refused(again, connection.answer)))

    async def _refused(self, sent: Sent, answer: asyncio.Future[Any]) -> None:
        try:
            response = await answer
        except OSError:
            return
        told_nothing = sent.path.endswith("/alive") and b'"open":false' in response.body
        if response.status < 400 and not told_nothing:
            self._world.broken = Broken(
                f"a stranger was answered {response.status} to {sent.short()}: {response.body[:80]!r}"
            )

    async def _later(self) -> None:
        """A site joins in the middle, another one is shut out."""
        if self._world.study.late:
            await asyncio.sleep(self._random.uniform(20, 200))
            late = self._world.study.late
            await self._ordered(
                lambda ledger: ledger.add_member(Member(late, "site", serial_of(late), self._world.wall()))
            )
            self._world.keep_alive(late)
        if self._world.chances.revoked:
            await asyncio.sleep(self._random.uniform(20, 400))
            name = self._random.choice(self._world.study.names)
            await self._ordered(lambda ledger: ledger.revoke(name, self._world.wall()))
            self._world.trace.say("world", f"revokes {name}")
            self._world.revoked = name
        await self._world.loop.create_future()

    async def _ordered(self, order: Callable[[SqliteLedger], None]) -> None:
        """An operator's order, which the coordinator carries out as soon as it can."""
        while True:
            await asyncio.sleep(1)
            coordinator = self._world.coordinator
            if coordinator is not None and coordinator.process.alive and hasattr(coordinator, "ledger"):
                with suppress(StoreError):
                    order(coordinator.ledger)
                    return
