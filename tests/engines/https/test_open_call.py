"""A call's clock, where a database is away or a machine sleeps: silence that nobody could break is nobody's fault."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

from insitu.core.errors import StoreError
from insitu.core.federation import Call, CallKey, Entry
from insitu.engines.https.calls import machine
from insitu.engines.https.calls.machine import Arrives, Asks, Lives
from insitu.engines.https.calls.open_call import OpenCall
from insitu.rounds.policy import Policy


class Hours(asyncio.SelectorEventLoop):
    """A loop whose time passes as fast as there is nothing to do. ``jump`` adds seconds in which it stands still."""

    def __init__(self) -> None:
        super().__init__()
        self._at, look = 0.0, self._selector.select

        def select(timeout: float | None = None) -> list:
            self._at += timeout or 0.0
            return look(0)

        self._selector.select = select

    def time(self) -> float:
        return self._at

    def jump(self, seconds: float) -> None:
        self._at += seconds


def run(work) -> None:
    loop = Hours()
    try:
        loop.run_until_complete(work(loop))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


class Journal:
    """Entries as a database keeps them, which is away while ``away`` is not 0: so long does it take to say so."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.away = 0.0
        self.meanwhile = lambda: None

    async def write(self, entries) -> None:
        self.meanwhile()
        if self.away:
            await asyncio.sleep(self.away)
            raise StoreError("the database is away")
        self.entries += entries

    async def read(self):
        if self.away:
            await asyncio.sleep(self.away)
            raise StoreError("the database is away")
        return list(self.entries)


def opened(journal: Journal, **policy) -> OpenCall:
    names = ["berlin", "paris"]
    call = Call(CallKey("run", 1, "train", 0), names, dict.fromkeys(names, "m"), 0.0)
    rules = Policy(**{name: timedelta(seconds=seconds) for name, seconds in policy.items()})
    tasks = {name: {"task": name} for name in names}
    return OpenCall(call, machine.opened(names, 2, rules), tasks, journal.write, journal.read)


async def beating(call: OpenCall) -> None:
    """A site that trains says so every ten seconds, whatever it is answered."""
    while True:
        with suppress(StoreError):
            await asyncio.wait_for(call.happen(Lives("berlin", "training")), 5)
        await asyncio.sleep(10)


def phases(call: OpenCall) -> dict[str, str]:
    return {name: standing.phase for name, standing in call.state.who.items()}


@pytest.mark.parametrize("policy", [{"gone": 60}, {"deadline": 300}], ids=["gone", "deadline"])
def test_nobody_is_given_up_for_the_time_that_a_database_was_away(policy):
    async def work(loop):
        journal = Journal()
        call = opened(journal, **policy)
        for name in ("berlin", "paris"):
            await call.happen(Asks(name))
        beats = asyncio.ensure_future(beating(call))
        journal.away = 400.0
        answer = Arrives("paris", {"manifest": "x", "bytes": 1})
        with pytest.raises(StoreError):
            await call.happen(answer)
        assert phases(call) == {"berlin": "working", "paris": "working"}
        journal.away = 0.0
        await call.happen(answer)
        await asyncio.sleep(40)
        assert phases(call) == {"berlin": "working", "paris": "arrived"}
        beats.cancel()
        await asyncio.sleep(700)  # and whoever is silent, or late, when it is there is given up
        assert phases(call)["berlin"] == "failed"

    run(work)


def test_a_machine_that_sleeps_in_the_middle_of_a_write_gives_nobody_up():
    async def work(loop):
        journal = Journal()
        call = opened(journal, gone=60)
        for name in ("berlin", "paris"):
            await call.happen(Asks(name))
        journal.meanwhile = lambda: loop.jump(3600)
        await call.happen(Arrives("paris", {"manifest": "x", "bytes": 1}))
        journal.meanwhile = lambda: None
        await asyncio.sleep(30)
        assert phases(call) == {"berlin": "working", "paris": "arrived"}
        await asyncio.sleep(60)
        assert phases(call) == {"berlin": "failed", "paris": "arrived"}

    run(work)


def test_what_has_come_is_looked_at_before_the_clock():
    async def work(loop):
        journal = Journal()
        call = opened(journal, gone=60)
        for name in ("berlin", "paris"):
            await call.happen(Asks(name))
        await asyncio.sleep(59.5)
        said = []

        def meanwhile():  # berlin speaks in time, and is heard when the write is over
            said.append(asyncio.ensure_future(call.happen(Lives("berlin", "training"))))
            loop.jump(0.9)

        journal.meanwhile = meanwhile
        await call.happen(Arrives("paris", {"manifest": "x", "bytes": 1}))
        await asyncio.gather(*said)
        await asyncio.sleep(1)
        assert phases(call) == {"berlin": "working", "paris": "arrived"}

    run(work)


def test_slow_writes_do_not_hold_the_clock():
    async def work(loop):
        journal = Journal()
        call = opened(journal, deadline=100)
        journal.meanwhile = lambda: loop.jump(0.5)
        for name in ("berlin", "paris"):
            await call.happen(Asks(name))
        await call.happen(Arrives("paris", {"manifest": "x", "bytes": 1}))
        assert call.now() == pytest.approx(0.5, abs=0.1)
        await asyncio.sleep(101)
        assert phases(call) == {"berlin": "failed", "paris": "arrived"}

    run(work)
