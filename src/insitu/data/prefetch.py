"""The next clients are loaded while the present ones are at work: a bounded number of bytes ahead.

A disk is fast where it has several things to do at a time. Where the source can name what it will read (``soon``), the
disk is told further ahead than a thread reads, which finds them done; where reads go past the page cache, nothing can
be named, and several threads wait for the disk at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from insitu.core import tree
from insitu.core.types import Client

BUDGET = 160 << 20
"""Bytes of clients that wait, at least one: a block of large clients (256 of 600 KiB), or many of usual ones, so that a
whole block is there at once."""

NAMED = 32 << 20
"""Bytes that the disk is told of before they are read, at least one client's."""

Load = Callable[[int], Client]
Soon = Callable[[int], int]
"""Tells the disk of a client; returns its bytes."""


class Prefetch:
    """Loads by place, ahead of whoever asks where it was announced who will be asked for."""

    def __init__(self, load: Load, budget: int = BUDGET, soon: Soon | None = None, threads: int = 1) -> None:
        self._load, self._budget, self._soon, self._threads = load, budget, soon, threads
        self._walk: Walk | None = None

    def announce(self, places: Iterable[int]) -> None:
        """These places will be asked for, in this order. What was announced before no longer holds.

        What was loaded by then is kept, where it is among them.
        """
        order = deque(int(place) for place in places)
        before = {} if self._walk is None else self._walk.end(set(order))
        # One that is asked for at once has nobody before it whom it could be loaded beside.
        alone = len(order) < 2 and not before
        self._walk = None if alone else Walk(self._load, order, self._budget, self._soon, before, self._threads)

    def at(self, place: int) -> Client:
        """The client at this place, or what loading it raised."""
        return self._load(place) if self._walk is None else self._walk.take(place)


Loaded = tuple[Client | None, Exception | None, int]
"""A client, or what loading it raised; and its bytes."""


class Walk:
    """One announcement. Its threads start when the first client is asked for, and end with the last or ``end``."""

    def __init__(
        self, load: Load, order: deque[int], budget: int, soon: Soon | None, ready: dict[int, Loaded], threads: int
    ) -> None:
        """``ready``: what an earlier walk left."""
        self._load, self._order, self._budget, self._soon, self._threads = load, order, budget, soon, threads
        self._waiting = set(order) - set(ready)
        self._ready = ready
        self._busy: set[int] = set()
        self._bytes = sum(size for _, _, size in ready.values())
        self._named: dict[int, int] = {}
        self._unnamed = deque(order)
        self._started = self._ended = False
        self._turn, self._naming = threading.Condition(), threading.Lock()

    def take(self, place: int) -> Client:
        """The client, from the threads where one has it or is at it; else loaded here, beside them."""
        with self._turn:
            self._waiting.discard(place)
            if not self._started:
                self._started = True
                for _ in range(self._threads):
                    threading.Thread(target=self._run, name="insitu prefetch", daemon=True).start()
            while place in self._busy:
                self._turn.wait()
            found = self._ready.pop(place, None)
            if found is not None:
                self._bytes -= found[2]
                self._turn.notify_all()
        if found is None:
            return self._load(place)
        client, error, _ = found
        if error is not None:
            raise error
        assert client is not None
        return client

    def end(self, keep: Collection[int] = ()) -> dict[int, Loaded]:
        """Nobody asks any more: a thread ends after the client that it is at. Returns what is ready of ``keep``."""
        with self._turn:
            self._order.clear()
            while not self._busy.isdisjoint(keep):
                self._turn.wait()
            self._ended = True
            # One that could not be loaded is tried again when its time has come.
            kept = {place: found for place, found in self._ready.items() if place in keep and found[1] is None}
            self._ready.clear()
            self._turn.notify_all()
        return kept

    def _run(self) -> None:
        while (place := self._next()) is not None:
            self._name()
            client, error = None, None
            try:
                client = self._load(place)
            except Exception as raised:
                error = raised
            size = 0 if client is None else _nbytes(client)
            with self._turn:
                self._busy.discard(place)
                if not self._ended:
                    self._ready[place] = client, error, size
                    self._bytes += size
                self._turn.notify_all()
            del client, error  # else this frame would keep the last one's data

    def _next(self) -> int | None:
        with self._turn:
            while not self._ended and self._ready and self._bytes >= self._budget:
                self._turn.wait()
            while self._order and not self._ended:
                place = self._order.popleft()
                if place in self._waiting:
                    self._waiting.discard(place)
                    self._busy.add(place)
                    return place
            return None

    def _name(self) -> None:
        """Tells the disk of the clients that are next, some bytes of them; one thread does."""
        if self._soon is None or not self._naming.acquire(blocking=False):
            return
        try:
            with self._turn:
                self._named = {place: size for place, size in self._named.items() if place in self._waiting}
                room = NAMED - sum(self._named.values())
            while room > 0 and self._unnamed:
                place = self._unnamed.popleft()
                if place in self._waiting:
                    self._named[place] = self._soon(place)
                    room -= self._named[place] or NAMED
        except Exception:
            return  # loading it will say why
        finally:
            self._naming.release()


def _nbytes(client: Client) -> int:
    found = [data for data in (client.data, client.holdout) if data is not None]
    arrays: list[Any] = [part for data in found for part in (*tree.values(data.x), data.y) if part is not None]
    return sum(part.nbytes for part in arrays)
