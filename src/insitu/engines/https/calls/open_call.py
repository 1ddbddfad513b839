"""A call at work: events come in from all sides, are taken one after another, and count once they are durable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from insitu.core.errors import Fenced, Refusal, StoreError
from insitu.core.federation import Call, Entry
from insitu.engines.https.calls import machine
from insitu.engines.https.calls.machine import Effect, Event, Records, State, Ticks

Write = Callable[[list[Entry]], Awaitable[None]]
Read = Callable[[], Awaitable[list[Entry]]]
_Batch = list[tuple[Event, "asyncio.Future[list[Effect]] | None"]]
AGAIN = 1.0
"""Seconds after which what could not be written is tried again."""
PULSE, ASLEEP = 2.0, 1.0
"""Seconds between two looks at the clock while time counts, and by which a look that is later is one after a sleep."""


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
    """One call. ``state`` is what is durable; ``tasks`` by client what each is asked.

    It works from when it is made until ``end``; while it is held, time stands still for it, and updates still count.
    """

    def __init__(self, call: Call, fresh: State, tasks: Mapping[str, dict[str, Any]], write: Write, read: Read) -> None:
        self.call, self.tasks = call, tasks
        self._fresh, self._write, self._read = fresh, write, read
        self._loop = asyncio.get_running_loop()
        open_for = call.entries[-1].now if call.entries else 0.0
        self._base = self._loop.time() - open_for
        self._held: float | None = None
        self.state = machine.replayed(fresh, call.entries, open_for)
        self.broken: StoreError | None = None
        """Why nothing can be written down here any more."""
        self.told = 0
        """How many items the session has taken."""
        self.bell = Bell()
        self._ready: tuple[State, list[int]] | None = None
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[list[Effect]]] | None] = asyncio.Queue()
        self.closed = any(entry.kind == "closed" for entry in call.entries)
        """Whether its session has written down that it has heard enough."""
        self._unsure = self._over = False
        self._actor = self._loop.create_task(self._work())

    def now(self) -> float:
        """Seconds for which the call has been open and not held; a restart takes up the last entry's time."""
        return self._held if self._held is not None else self._loop.time() - self._base

    @property
    def held(self) -> bool:
        """Whether no session is at work on it."""
        return self._held is not None

    def hold(self) -> None:
        """Time stands still until ``go_on``."""
        if self._held is None:
            self._held = self.now()
            self._inbox.put_nowait(None)

    def go_on(self) -> None:
        """A session takes it up, from its first item on."""
        self.told = 0
        if self._held is not None:
            self._base, self._held = self._loop.time() - self._held, None
            self._inbox.put_nowait(None)

    def ready(self) -> list[int]:
        """The indices that can be told of now."""
        if self._ready is None or self._ready[0] is not self.state:
            self._ready = self.state, machine.ready(self.state)
        return self._ready[1]

    def documents(self) -> set[str]:
        """The documents that it names: what its clients were told, and manifests of updates that are documents."""
        arrived = [one.data for one in self.state.who.values() if one.phase == "arrived"]
        return {str(data["manifest"]) for data in arrived if not data.get("text")} | set(self.call.message.values())

    async def happen(self, event: Event) -> list[Effect]:
        """What follows from an event, once that is durable.

        Raises StoreError where it could not be made so, Refusal BUSY where nothing is written down here any more.
        """
        if self.broken is not None:
            raise self.broken
        if self._over:
            return self._spoken(event)
        future: asyncio.Future[list[Effect]] = self._loop.create_future()
        self._inbox.put_nowait((event, future))
        return await future

    def end(self) -> None:
        """Nothing more is written down, once what is being written is."""
        self._over = True
        self._inbox.put_nowait(None)
        self.bell.ring()

    def _spoken(self, event: Event) -> list[Effect]:
        """What is said of an event that cannot change anything any more."""
        _, effects = machine.step(self.state, event, self.now())
        if any(isinstance(effect, Records) for effect in effects):
            raise Refusal("BUSY", "the run is held up: the same request may succeed later", 5.0)
        return effects

    # ------------------------------------------------------------ one after another

    async def _work(self) -> None:
        while not self._over:
            batch = await self._batch()
            if batch:
                before = self._loop.time()
                written = await self._take(batch)
                self._stood(before, ASLEEP if written else 0.0)
        while not self._inbox.empty():
            waiting = self._inbox.get_nowait()
            if waiting is not None and not waiting[1].done():
                try:
                    waiting[1].set_result(self._spoken(waiting[0]))
                except Refusal as refusal:
                    waiting[1].set_exception(refusal)

    async def _batch(self) -> _Batch:
        """All that has come in, or that time has passed."""
        while True:
            wakes = None if self._held is not None else machine.wakes(self.state)
            left = None if wakes is None else max(0.0, wakes - self.now())
            found: list[Any] = []
            if self._inbox.empty():  # else nobody has been waited for: what has come is looked at before the clock
                before = self._loop.time()
                with suppress(TimeoutError):
                    found.append(await asyncio.wait_for(self._inbox.get(), None if left is None else min(left, PULSE)))
                stood = left is not None and self._stood(before, PULSE + ASLEEP)
                left = None if stood else left
            while not self._inbox.empty():
                found.append(self._inbox.get_nowait())
            batch: _Batch = [one for one in found if one is not None]
            if left is not None and left <= PULSE and (not found or left <= 0):
                batch.append((Ticks(), None))
            if batch or found:
                return batch

    def _stood(self, before: float, most: float) -> bool:
        """Whether more time than this has gone by since: nobody could be heard meanwhile, so that it does not count."""
        gap = self._loop.time() - before
        if gap <= most or self._held is not None:
            return False
        self._base += gap
        return True

    async def _take(self, batch: _Batch) -> bool:
        """The events of a batch in turn; their entries are written together, and nothing counts before.

        False where that could not be done.
        """
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
            return False
        except BaseException as error:  # a bug, or the end of the loop: nobody may wait for it for ever
            self._fail(batch, error if isinstance(error, Exception) else Refusal("BUSY", "the coordinator ends", 5.0))
            if isinstance(error, Exception):
                self.broken = StoreError(f"a call cannot go on: {type(error).__name__}: {error}")
                self.bell.ring()
            raise
        self.state = state
        for future, effects in told:
            if future is not None and not future.done():
                future.set_result(effects)
        self.bell.ring()
        return True

    async def _not_written(self, error: StoreError, batch: _Batch) -> None:
        self._fail(batch, error)
        if isinstance(error, Fenced):
            self.broken = error
            self.bell.ring()
        if batch[0][1] is None:
            await asyncio.sleep(AGAIN)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        for _, future in batch:
            if future is not None and not future.done():
                future.set_exception(error)

    async def _reread(self) -> None:
        """After a write of which nobody knows whether it arrived: what is there counts."""
        entries = await self._read()
        state, before = machine.replayed(self._fresh, entries, 0.0), self.state.who
        who = {
            c: s._replace(
                heard=max(s.heard, before[c].heard), doing=before[c].doing,
                phase=before[c].phase if s.seq < 0 else s.phase,
            )
            for c, s in state.who.items()
        }  # fmt: skip
        self.state = replace(state, who=who, late=self.state.late)
        self._unsure = False
