"""The next clients are loaded while the present ones are at work: in one thread, a bounded number of bytes ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from insitu.core import tree
from insitu.core.types import Client

BUDGET = 256 << 20
"""Bytes of clients that wait, at least one: some blocks of usual clients, so that a whole block is there at once."""

Load = Callable[[int], Client]


class Prefetch:
    """Loads by place, ahead of whoever asks where it was announced who will be asked for."""

    def __init__(self, load: Load, budget: int = BUDGET) -> None:
        self._load, self._budget = load, budget
        self._walk: Walk | None = None

    def announce(self, places: Iterable[int]) -> None:
        """These places will be asked for, in this order. What was announced before no longer holds."""
        if self._walk is not None:
            self._walk.end()
        waiting = deque(int(place) for place in places)
        self._walk = Walk(self._load, waiting, self._budget) if len(waiting) > 1 else None

    def at(self, place: int) -> Client:
        """The client at this place, or what loading it raised."""
        return self._load(place) if self._walk is None else self._walk.take(place)


class Walk:
    """One announcement. Its thread starts when the first client is asked for, and ends with the last or ``end``."""

    def __init__(self, load: Load, order: deque[int], budget: int) -> None:
        self._load, self._order, self._budget = load, order, budget
        self._waiting = set(order)
        self._ready: dict[int, tuple[Client | None, Exception | None, int]] = {}
        self._busy: int | None = None
        self._bytes = 0
        self._started = self._ended = False
        self._turn = threading.Condition()

    def take(self, place: int) -> Client:
        """The client, from the thread where that has it or is at it; else loaded here, beside the thread."""
        with self._turn:
            self._waiting.discard(place)
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="insitu prefetch", daemon=True).start()
            while self._busy == place:
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

    def end(self) -> None:
        """Nobody asks any more: what is ready is let go of, and the thread ends after the client that it is at."""
        with self._turn:
            self._ended = True
            self._ready.clear()
            self._turn.notify_all()

    def _run(self) -> None:
        while (place := self._next()) is not None:
            client, error = None, None
            try:
                client = self._load(place)
            except Exception as raised:
                error = raised
            size = 0 if client is None else _nbytes(client)
            with self._turn:
                self._busy = None
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
                    self._busy = place
                    return place
            return None


def _nbytes(client: Client) -> int:
    found = [data for data in (client.data, client.holdout) if data is not None]
    arrays: list[Any] = [part for data in found for part in (*tree.values(data.x), data.y) if part is not None]
    return sum(part.nbytes for part in arrays)
