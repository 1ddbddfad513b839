"""The workers of a main process: started, given connections, told what it knows, started anew when one dies."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from insitu.engines.https.http import Answers
from insitu.engines.https.serve.workers.hand import Hand

log = logging.getLogger("insitu.https")

LIVED = 10.0
"""A worker that lived for so many seconds is followed by the next one at once."""
PAUSES = (0.1, 0.3, 1.0, 3.0, 5.0)
"""Seconds before the next one, where one after the other dies young."""
LOOK = 5.0
"""Seconds between two looks at all of them."""
SILENT = 60.0
"""Seconds without a word after which a worker is taken for hung; it says something every five seconds."""
UNEVEN = 4
"""Connections by which workers may differ, if that is no tenth of them."""
LATE = 10.0
"""Seconds beyond the grace that workers have to end in."""


class Fleet:
    """``count`` workers, once it is started; on the loop only.

    table  answers what they ask
    entry  ``package.module``, whose ``main(line, connections)`` a worker runs
    told   what the worker is told first: limits, files of certificates, where the blobs are
    """

    def __init__(self, table: Answers, count: int, entry: str, told: Mapping[str, Any]) -> None:
        self._table, self.count, self._entry, self._told = table, count, entry, dict(told)
        self._hands: list[Hand] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._left: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._counts: Counter[str] = Counter()
        self._cpu = 0.0
        """Of workers that are no more, as are the counts."""
        self.started = 0
        """How many were started so far."""

    def start(self) -> None:
        """Starts them; they are ``there`` when they say so. Does nothing the second time, or after `stop`."""
        if self._tasks or self._stopping.is_set() or not self.count:
            return
        self._tasks = [asyncio.ensure_future(self._keep()) for _ in range(self.count)]
        self._tasks.append(asyncio.ensure_future(self._look()))

    @property
    def there(self) -> list[Hand]:
        """Those that take connections now."""
        return [hand for hand in self._hands if hand.ready]

    def give(self, sock: socket.socket, address: str) -> bool:
        """Gives an accepted connection to the worker with the fewest; False: none can take it.

        Among equals chance decides: a site has two connections, one of which sends the chunks, and taking turns would
        give all of those to the same worker.
        """
        if self._stopping.is_set():
            return False
        for hand in sorted(self.there, key=lambda hand: (hand.held, random.random())):
            if hand.take(sock, address):
                sock.close()
                return True
        return False

    def parts(self) -> bool:
        """Whether connections of the main process's own port should end, as a worker would take the next ones."""
        return bool(self.there) and not self._stopping.is_set()

    def cut(self, serials: Collection[str]) -> None:
        """Ends all connections of these certificates at once."""
        self._tell("cut", serials=list(serials))

    def reload(self) -> None:
        """Has the certificate files read again."""
        self._tell("reload")

    async def stop(self, grace: float) -> None:
        """Lets requests end for ``grace`` seconds, as `Port.stop`; returns when no worker is left."""
        self._stopping.set()
        self._tell("stop", grace=grace)
        ends = [hand.ended for hand in self.there]
        if ends:
            await asyncio.wait(ends, timeout=grace + LATE)
        for hand in self._hands:
            hand.kill()
        for task in self._tasks[self.count :]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in (left := list(self._left)):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def counts(self) -> Counter[str]:
        """What the ports of all of them have counted, those of the dead included."""
        return sum((hand.counts for hand in self._hands), Counter(self._counts))

    def open(self, what: str) -> int:
        """How many of these their ports have now: see `Port.open`."""
        return sum(hand.open.get(what, 0) for hand in self._hands)

    def cpu(self) -> float:
        """CPU seconds of all of them so far, the dead included."""
        return self._cpu + sum(hand.cpu for hand in self._hands)

    # ------------------------------------------------------------ inside

    async def _keep(self) -> None:
        """One worker after the other."""
        clock, young = asyncio.get_running_loop().time, 0
        while not self._stopping.is_set():
            began = clock()
            try:
                hand = await Hand.started(self._table, self._entry, self._told, first=self.started < self.count)
            except OSError as error:
                log.error("a worker process cannot be started: %s", error)
            else:
                self.started += 1
                await self._attend(hand)
            young = 0 if clock() - began > LIVED else young + 1
            if young:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), PAUSES[min(young, len(PAUSES)) - 1])

    async def _attend(self, hand: Hand) -> None:
        """Until this one has ended. What it had asked goes on, as after a lost connection."""
        self._hands.append(hand)
        if self._stopping.is_set():
            hand.kill()
        try:
            await hand.ended
        finally:
            self._hands.remove(hand)
            self._counts += hand.counts
            self._cpu += hand.cpu
            for task in hand.answering():
                self._left.add(task)
                task.add_done_callback(self._left.discard)
            status = await hand.buried()
        if not self._stopping.is_set():
            log.error("the worker process %d %s; another one is started", hand.pid, status)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            for hand in list(self._hands):  # those as well that are not ready: what they open may never answer
                hand.silence += 1  # looks, not seconds: none are missed while this process itself stands still
                if hand.silence > SILENT / LOOK:
                    log.error("the worker process %d has said nothing for %g s: it is killed", hand.pid, SILENT)
                    hand.kill()
            self._level(self.there)

    def _level(self, hands: Sequence[Hand]) -> None:
        """A worker that is new has no connections: some of the others' end with their next answer, and come back."""
        held = [hand.held for hand in hands]
        even = not held or max(held) - min(held) <= max(UNEVEN, sum(held) // 10)
        for hand in hands:
            hand.shed(0 if even else max(0, hand.held - sum(held) // len(held)))

    def _tell(self, what: str, **told: Any) -> None:
        for hand in self._hands:
            with suppress(OSError):
                hand.tell(what, **told)
