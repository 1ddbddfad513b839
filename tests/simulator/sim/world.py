"""One simulation: everything put together, gone through from one seed, and judged."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from insitu.core.errors import StoreError
from insitu.core.federation import Member
from insitu.engines.https.http import Peer
from insitu.store.ledger.sqlite import SqliteLedger
from sim.checks import Broken, Checks
from sim.coordinator import Coordinator
from sim.disk import Platter
from sim.faults import Chances, Strikes
from sim.loop import CURRENT, Died, Process, VirtualLoop, run
from sim.network import Fate, Network, Sent, Weather
from sim.site import Site, serial_of
from sim.study import Study
from sim.trace import Trace

LONGEST = 1200.0
"""Virtual seconds within which a round commits once nothing goes wrong any more."""
WHEN_FULL = 200
"""Bytes that fit on a disk that is said to be full."""


@dataclass
class Result:
    """What came of a seed. ``trouble`` is empty where everything held."""

    seed: int
    trouble: str
    trace: str
    lines: list[str]
    steps: int = 0
    seconds: float = 0.0
    deaths: int = 0
    excluded: bool = False
    hits: dict[str, int] = field(default_factory=dict)


class World:
    """Coordinator, sites, network, disks and whatever befalls them."""

    def __init__(self, seed: int, folder: Path, show: bool = False, chances: Chances | None = None) -> None:
        self.seed, self.study = seed, Study.of(seed)
        self.chances = Chances.of(seed) if chances is None else chances
        self.loop = VirtualLoop()
        self.trace = Trace(self.loop.time, show)
        self.network = Network(self.loop, Random(f"{seed} network"), self.trace)
        self.checks = Checks(self.study)
        self.strikes = Strikes(Random(f"{seed} failpoints"), self.chances, CURRENT)
        self.strikes.on_death = lambda process, name: self.trace.say(process.name, f"dies at {name}")
        self._random = Random(f"{seed} faults")
        self._database = folder / "federation.db"
        names = ("coordinator", *self.study.all_names)
        self.platters = {name: Platter(Random(f"{seed} disk of {name}"), self.loop.time) for name in names}
        self.processes: dict[str, Process] = {}
        self._lives: dict[str, int] = {}
        self.coordinator: Coordinator | None = None
        self.deaths = 0
        self._offset = 0.0
        self._plans: dict[str, Any] = {}
        self._out: list[Sent] = []
        self._background: list[asyncio.Task[None]] = []
        self._broken: Broken | None = None
        self._revoked = ""
        self._hits = 0
        self.most_tasks = 0

    @property
    def finished(self) -> bool:
        """Whether the run is, and the coordinator that has finished it lives."""
        return self.coordinator is not None and self.coordinator.done and self.coordinator.process.alive

    def wall(self) -> float:
        """The wall clock, which may jump."""
        return 1.8e9 + self.loop.time() + self._offset

    # ------------------------------------------------------------ from the beginning to the end

    async def main(self) -> None:
        """The whole of it. Raises Broken."""
        self._found()
        self.network.on_sent, self.network.on_answer = self._went, self._answered
        self.loop.after = self._after
        self.network.weather = self.chances.weather
        for name in ("coordinator", *self.study.names):
            self._keep_alive(name)
        made = (self._deaths(), self._partings(), self._disks(), self._clocks(), self._strangers(), self._later())
        hazards = [asyncio.ensure_future(hazard) for hazard in made]
        self._background += hazards
        while not self.finished and self.loop.time() < self.chances.until:
            await asyncio.sleep(1)
        for task in hazards:
            task.cancel()
        self._heal()
        await self._commits()
        await asyncio.sleep(120)
        self.checks.look()
        self.checks.finish()
        await self._nothing_is_left()
        if not self.checks.excluded() and self.checks.model() != self.study.undisturbed():
            raise Broken("everybody was in every round, and the model is not that of the undisturbed run")

    async def _nothing_is_left(self) -> None:
        """No chunk of a run that is finished stays on the disk, and whoever was shut out is."""
        assert self.coordinator is not None
        await self.coordinator.swept(0.0)
        files = self.platters["coordinator"].names.items()
        left = [path.name for path, inode in files if inode.data is not None]
        if left:
            raise Broken(f"the run is finished, and the coordinator still keeps {left}")
        if self._revoked and self._revoked not in self.checks.revoked:
            raise Broken(f"{self._revoked} was shut out, and the coordinator has not noticed")

    async def _commits(self) -> None:
        """Nothing goes wrong any more: round after round commits, each within its time."""
        done, since = self.checks.committed, self.loop.time()
        while not self.finished:
            await asyncio.sleep(1)
            if self.checks.committed > done:
                done, since = self.checks.committed, self.loop.time()
            if self.loop.time() - since > LONGEST:
                status = self.coordinator.exchange.status("") if self.coordinator else {}
                raise Broken(f"no round after round {done} has committed for {LONGEST:g} s: {status}")

    def _found(self) -> None:
        """The founder's part: a ledger with members."""
        self._database.write_bytes(_empty_database())
        with SqliteLedger(self._database, clock=self.wall) as ledger:
            for name in self.study.names:
                ledger.add_member(Member(name, "site", serial_of(name), self.wall()))
        self.checks.watch(self._database)

    def _heal(self) -> None:
        self.trace.say("world", "from here on everything works")
        self.strikes.calm = True
        self.network.weather, self.network.apart = Weather(), {}
        for platter in self.platters.values():
            platter.room = 10**9
        for process in self.processes.values():
            process.fatal = None
            if process.paused:
                process.wake()

    def end(self) -> None:
        """Everybody is gone."""
        for task in self._background:
            task.cancel()
        for process in self.processes.values():
            process.kill()
        self.checks.close()

    def _after(self) -> None:
        """After every callback."""
        if self._broken is not None:
            raise self._broken
        writes = self.strikes.hits.get("ledger.commit.before", 0) + self.strikes.hits.get("store.commit.before", 0)
        if (writes != self._hits or self.loop.steps % 64 == 0) and self.checks.look():
            self.trace.say("world", f"journal {self._entries()}, committed {self.checks.committed}")
        self._hits = writes
        if self.loop.steps % 64 == 0:
            self._check_memory()

    def _check_memory(self) -> None:
        process = self.processes["coordinator"]
        self.most_tasks = max(self.most_tasks, len(process.tasks))
        bound = 40 * len(self.study.all_names)
        if len(process.tasks) > bound:
            raise Broken(f"the coordinator has {len(process.tasks)} tasks, and {bound} are enough")
        if self.coordinator is not None and process.alive and hasattr(self.coordinator, "blobs"):
            parts = len(self.coordinator.blobs._arriving)
            if parts > bound:
                raise Broken(f"the coordinator has {parts} parts open")

    def _entries(self) -> int:
        return sum(len(call.entries) for call in self.checks.calls.values())

    def _went(self, sent: Sent) -> None:
        self.checks.went(sent)
        self._out.append(sent)
        del self._out[:-50]

    def _answered(self, sent: Sent, response: Any) -> None:
        try:
            self.checks.answered(sent, response)
        except Broken as error:
            self._broken = error

    # ------------------------------------------------------------ lives

    def _keep_alive(self, name: str) -> None:
        self._background.insert(0, asyncio.ensure_future(self._lives_of(name)))

    async def _lives_of(self, name: str) -> None:
        """A process, and another one a while after it has died."""
        while True:
            self._lives[name] = life = self._lives.get(name, 0) + 1
            process = self.processes[name] = Process(self.loop, name)
            process.ends.append(self.platters[name].crash)
            if not self.strikes.calm:
                often = self.chances.coordinator_dies if name == "coordinator" else self.chances.site_dies
                if often and self._random.random() < 0.5:  # else it dies by the clock, if at all
                    process.fatal = int(self._random.expovariate(1 / 400))
            made = self._made(name, process, Random(f"{self.seed} {name} {life}"))
            task = process.spawn(made.run(), "main")
            gone = self.loop.create_future()
            process.ends.append(lambda gone=gone: gone.done() or gone.set_result(None))  # type: ignore[misc]
            task.add_done_callback(lambda done, gone=gone: gone.done() or gone.set_result(None))  # type: ignore[misc]
            await gone
            if self._over(name, process, task):
                return
            self.deaths += 1
            await asyncio.sleep(self._random.expovariate(1 / 20))

    def _over(self, name: str, process: Process, task: asyncio.Task[Any]) -> bool:
        """Whether that was the last life; a process that ends by itself with an error is started again."""
        if not process.alive:
            self.trace.say(name, "is dead")
            return False
        error = None if not task.done() or task.cancelled() else task.exception()
        if isinstance(error, (AssertionError, TypeError, AttributeError, KeyError, NameError)):
            self._broken = Broken(f"{name} broke: {error!r}")
            self._broken.__cause__ = error
        self.trace.say(name, f"ends: {type(error).__name__}: {str(error)[:80]}")
        process.kill()
        return "REVOKED" in str(getattr(error, "code", ""))

    def _made(self, name: str, process: Process, random: Random) -> Coordinator | Site:
        if name == "coordinator":
            self.coordinator = Coordinator(
                process, self.study, self._database, self.platters[name], self.network, random, self.wall,
                self.checks.arrived, self.checks.shut_out, self.trace,
            )  # fmt: skip
            return self.coordinator
        pace = (5.0, 20.0, 40.0)[(self.seed + len(name)) % 3]
        return Site(process, name, self.study, self.platters[name], self.network, random, pace, self.trace, self._plans)

    # ------------------------------------------------------------ hazards

    async def _every(self, mean: float) -> None:
        """So long until the next one; for ever where there are none."""
        if not mean:
            await self.loop.create_future()
        await asyncio.sleep(self._random.expovariate(1 / mean))

    async def _deaths(self) -> None:
        """Between any two callbacks; and processes that stand still for a while."""

        async def of(names: tuple[str, ...], mean: float) -> None:
            while True:
                await self._every(mean)
                process = self.processes.get(self._random.choice(names))
                if process is not None and process.alive:
                    process.fatal = self._random.randint(0, 30)

        async def pauses() -> None:
            while True:
                await self._every(self.chances.pause)
                process = self.processes.get(self._random.choice(("coordinator", *self.study.names)))
                if process is not None and process.alive and not process.paused:
                    self.trace.say(process.name, "stands still")
                    process.pause()
                    await asyncio.sleep(self._random.expovariate(1 / 60))
                    if process.alive:
                        self.trace.say(process.name, "goes on")
                        process.wake()

        own = of(("coordinator",), self.chances.coordinator_dies)
        await asyncio.gather(own, of(self.study.names, self.chances.site_dies), pauses())

    async def _partings(self) -> None:
        while True:
            await self._every(self.chances.parted)
            some = self._random.sample(self.study.names, self._random.randint(1, len(self.study.names)))
            how = self._random.choice(("both", "there", "back"))
            self.trace.say("network", f"is parted from {', '.join(some)}: {how}")
            self.network.apart.update(dict.fromkeys(some, how))
            await asyncio.sleep(self._random.expovariate(1 / 60))
            for name in some:
                self.network.apart.pop(name, None)

    async def _disks(self) -> None:
        while True:
            await self._every(self.chances.full)
            name = self._random.choice(("coordinator", *self.study.names))
            self.trace.say(name, "has a full disk")
            self.platters[name].room = self.platters[name].used() + self._random.randint(0, WHEN_FULL)
            await asyncio.sleep(self._random.expovariate(1 / 60))
            self.platters[name].room = 10**9

    async def _clocks(self) -> None:
        while True:
            await self._every(self.chances.clock)
            self._offset += self._random.choice((-3600, -10, 10, 300, 3600))
            self.trace.say("world", f"the wall clock is off by {self._offset:g} s")

    async def _strangers(self) -> None:
        """Somebody plays requests again that others have sent: under no name of ours, or under another site's."""
        while True:
            await self._every(self.chances.stranger)
            if not self._out:
                continue
            sent = self._random.choice(self._out)
            other = self._random.choice(self.study.names)
            peer = self._random.choice((None, Peer(other, "site", "00ff"), Peer(other, "site", serial_of(other))))
            if "/tasks/" not in sent.path or (peer and sent.peer and peer.serial == sent.peer.serial):
                continue
            again = Sent(sent.method, sent.path, peer, sent.query, sent.headers, sent.body)
            connection = self.network._begin(again, Fate())
            if connection is not None:
                self._background.append(asyncio.ensure_future(self._refused(again, connection.answer)))

    async def _refused(self, sent: Sent, answer: asyncio.Future[Any]) -> None:
        try:
            response = await answer
        except OSError:
            return
        told_nothing = sent.path.endswith("/alive") and b'"open":false' in response.body
        if response.status < 400 and not told_nothing:
            self._broken = Broken(f"a stranger was answered {response.status} to {sent.short()}: {response.body[:80]!r}")

    async def _later(self) -> None:
        """A site joins in the middle, another one is shut out."""
        if self.study.late:
            await asyncio.sleep(self._random.uniform(20, 200))
            late = self.study.late
            await self._ordered(lambda ledger: ledger.add_member(Member(late, "site", serial_of(late), self.wall())))
            self._keep_alive(late)
        if self.chances.revoked:
            await asyncio.sleep(self._random.uniform(20, 400))
            name = self._random.choice(self.study.names)
            await self._ordered(lambda ledger: ledger.revoke(name, self.wall()))
            self.trace.say("world", f"revokes {name}")
            self._revoked = name
        await self.loop.create_future()

    async def _ordered(self, order: Callable[[SqliteLedger], None]) -> None:
        """An operator's order, which the coordinator carries out as soon as it can."""
        while True:
            await asyncio.sleep(1)
            coordinator = self.coordinator
            if coordinator is not None and coordinator.process.alive and hasattr(coordinator, "ledger"):
                with suppress(StoreError):
                    order(coordinator.ledger)
                    return


@cache
def _empty_database() -> bytes:
    """A database whose tables are made: they are the same for every seed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        SqliteLedger(path).close()
        return path.read_bytes()


class _Listener(logging.Handler):
    """Hears what handlers log of exceptions that no request should end in."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, (StoreError, OSError)) and self._world._broken is None:
            self._world._broken = Broken(f"{record.getMessage()}: {error!r}")
            self._world._broken.__cause__ = error


def simulate(seed: int, *, show: bool = False, chances: Chances | None = None) -> Result:
    """Goes through one seed. What is found wrong is told in the result."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="insitu-sim-", dir=shm if shm.is_dir() else None))
    collects = gc.isenabled()
    if seed % 8 == 0:
        gc.collect()
    gc.disable()  # generators that nobody holds are closed when their last name goes, and at no other time
    world = World(seed, folder, show, chances)
    trouble = ""
    log, listener = logging.getLogger("insitu"), _Listener(world)
    propagate, log.propagate = log.propagate, False
    log.addHandler(listener)
    try:
        run(world.loop, _to_the_end(world), world.strikes)
        if world.loop.troubles:
            first = world.loop.troubles[0]
            trouble = f"nobody has looked at {first.get('exception')!r}: {first.get('message')}"
    except (AssertionError, Died) as error:
        trouble = f"{type(error).__name__}: {error}"
        if error.__cause__ is not None:
            trouble += f" ({error.__cause__!r})"
    finally:
        log.removeHandler(listener)
        log.propagate = propagate
        shutil.rmtree(folder, ignore_errors=True)
        if collects:
            gc.enable()
    excluded = bool(world.checks.seals) and world.checks.excluded()
    return Result(
        seed, trouble, world.trace.digest(), list(world.trace.last), world.loop.steps, world.loop.time(), world.deaths,
        excluded, world.strikes.hits,
    )  # fmt: skip


async def _to_the_end(world: World) -> None:
    try:
        await world.main()
    finally:
        world.loop.after = lambda: None
        world.end()
