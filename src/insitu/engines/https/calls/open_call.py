"""A call at work: events come in from all sides, are taken one after another, and count once they are durable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from insitu.core.errors import Fenced, StoreError
from insitu.core.federation import Call, Entry
from insitu.engines.https.calls import machine
from insitu.engines.https.calls.machine import Effect, Event, Records, State, Ticks

Write = Callable[[list[Entry]], Awaitable[None]]
Read = Callable[[], Awaitable[list[Entry]]]
AGAIN = 1.0
"""Seconds after which what could not be written is tried again."""


class Bell:
    """Wakes whoever waits."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Everyone who waits now goes on."""
        waiting, self._waiting = self._waiting, set()
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def heard(self) -> asyncio.Future[None]:
        """Done at the next ring."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future


class OpenCall:
    """One call. ``state`` is what is durable; ``tasks`` by client what each is asked."""

    def __init__(self, call: Call, fresh: State, tasks: Mapping[str, dict[str, Any]], write: Write, read: Read) -> None:
        self.call, self.tasks = call, tasks
        self._fresh, self._write, self._read = fresh, write, read
        loop = asyncio.get_running_loop()
        open_for = call.entries[-1].now if call.entries else 0.0
        self._base = loop.time() - open_for
        self.state = machine.replayed(fresh, call.entries, open_for)
        self.broken: StoreError | None = None
        self.told = 0
        self.bell = Bell()
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[list[Effect]]]] = asyncio.Queue()
        self._unsure = False
        self._actor = asyncio.ensure_future(self._work())

    def now(self) -> float:
        """Seconds for which the call has been open; what it had been before a restart counts, the time between not."""
        return asyncio.get_running_loop().time() - self._base

    async def happen(self, event: Event) -> list[Effect]:
        """What follows from an event, once that is durable. Raises StoreError where it could not be made so."""
        if self.broken is not None:
            raise self.broken
        if self._actor.done():
            state, effects = machine.step(self.state, event, self.now())
            return [e for e in effects if not isinstance(e, Records)] if state == self.state else []
        future: asyncio.Future[list[Effect]] = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait((event, future))
        return await future

    def end(self) -> None:
        """Nothing more is taken; what is durable stays."""
        self._actor.cancel()
        self.bell.ring()

    # ------------------------------------------------------------ one after another

    async def _work(self) -> None:
        try:
            while True:
                batch = await self._batch()
                await self._take(batch)
        finally:
            while not self._inbox.empty():
                _, future = self._inbox.get_nowait()
                future.cancel()

    async def _batch(self) -> list[tuple[Event, asyncio.Future[list[Effect]] | None]]:
        """All that has come in, or that time has passed."""
        wakes = machine.wakes(self.state)
        timeout = None if wakes is None else max(0.0, wakes - self.now())
        try:
            found: list[Any] = [await asyncio.wait_for(self._inbox.get(), timeout)]
        except TimeoutError:
            return [(Ticks(), None)]
        while not self._inbox.empty():
            found.append(self._inbox.get_nowait())
        return found

    async def _take(self, batch: list[tuple[Event, asyncio.Future[list[Effect]] | None]]) -> None:
        """The events of a batch in turn; their entries are written together, and nothing counts before."""
        now, entries, told = self.now(), [], []
        try:
            if self._unsure:
                await self._reread()
            state = self.state
            for event, future in batch:
                state, effects = machine.step(state, event, now)
                entries += [effect.entry for effect in effects if isinstance(effect, Records)]
                told.append((future, effects))
            if entries:
                self._unsure = True  # until it is known that they are there
                await self._write(entries)
                self._unsure = False
        except StoreError as error:
            await self._not_written(error, batch)
            return
        self.state = state
        for future, effects in told:
            if future is not None and not future.done():
                future.set_result(effects)
        self.bell.ring()

    async def _not_written(
        self, error: StoreError, batch: list[tuple[Event, asyncio.Future[list[Effect]] | None]]
    ) -> None:
        for _, future in batch:
            if future is not None and not future.done():
                future.set_exception(error)
        if isinstance(error, Fenced):
            self.broken = error
            self.bell.ring()
        await asyncio.sleep(AGAIN if batch[0][1] is None else 0)

    async def _reread(self) -> None:
        """After a write of which nobody knows whether it arrived: what is there counts."""
        entries = await self._read()
        heard = {client: standing.heard for client, standing in self.state.who.items()}
        state = machine.replayed(self._fresh, entries, 0.0)
        who = {c: s._replace(heard=max(s.heard, heard[c]), doing=self.state.who[c].doing) for c, s in state.who.items()}
        self.state = replace(state, who=who, late=self.state.late)
        self._unsure = False
