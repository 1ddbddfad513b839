"""All workers of a run: started together, waited for together, replaced when they die."""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping
from typing import Any

from insitu.core.errors import EngineError
from insitu.engines.processes.channel import Frame, Tag
from insitu.engines.processes.hand import Hand, bury_all
from insitu.engines.processes.orders import Done, Flat, Load, Lost, Ready
from insitu.engines.processes.pack import Packed, pack, unpack, unpicklable
from insitu.engines.processes.shared import Shelf

FAILED_STARTS = 3
"""Workers in a row that may die before they are ready; then the cause is not chance."""
LOOK_UP = 1.0
"""Seconds between looks at whether processes live, should a death not have closed the channel."""
GRACE = 3.0
"""Seconds that workers have to end by themselves."""


class Pool:
    """So many workers, all with the same plan and clients."""

    def __init__(self, count: int, load: Load) -> None:
        """Raises EngineError where the plan or the clients cannot be sent."""
        packed = _packed(load)
        self.shelf = Shelf(packed.buffers)
        self._load = Frame(Tag.LOAD, 0, pack((bytes(packed.head), self.shelf.places)))
        self._count = count
        self._failed_starts = 0
        self._first: Ready | None = None
        self._given: Mapping[str, Any] = {}
        self.hands: list[Hand] = []

    def start(self, given: Mapping[str, Any]) -> Ready:
        """Starts all workers and waits for the first; the others are given its choices, so that all have the same."""
        self._given = given
        try:
            for _ in range(self._count):
                self.hands.append(Hand(self.shelf))
            # All are on their way before the first is waited for: a large plan is read when its reader is up.
            for hand in self.hands:
                hand.post(self._load)
            self._open(self.hands[0])
            while self._first is None:
                list(self.events())
        except BaseException:
            self.close()
            raise
        return self._first

    def free(self, ahead: int = 0) -> list[Hand]:
        """The workers that wait for a block, or have no more than so many to do."""
        return [hand for hand in self.hands if hand.ready and len(hand.blocks) <= ahead]

    def all_ready(self) -> bool:
        """Whether every worker has an inner engine, and waits for blocks or works on them."""
        return all(hand.ready for hand in self.hands)

    def events(self, wait: bool = True) -> Iterator[tuple[int, Done | Lost | None]]:
        """What became of blocks, by their numbers: all that is known by now, or, with ``wait``, soon.

        None: nothing, since its worker died before it came to it.

        Raises EngineError where workers cannot start.
        """
        for hand, frame in self._news(LOOK_UP if wait else 0.0):
            if frame is None:
                numbers, death = hand.blocks, self._replaced(hand)
                for i, number in enumerate(numbers):
                    yield number, None if i else death
            elif frame.tag is Tag.DONE:
                hand.blocks.remove(frame.number)
                yield frame.number, _read(frame)
            elif frame.tag is Tag.READY:
                self._ready(hand, unpack(frame.packed))
            else:
                lost = unpack(frame.packed)
                raise EngineError(
                    f"a worker process cannot load what it was sent ({lost.error}): what plan and clients are made of"
                    f" must be importable there as it is here, or be defined in the script itself\n{lost.trace}"
                )

    def cancel(self, number: int) -> None:
        """Tells the workers that blocks up to this number are no longer wanted."""
        for hand in self.hands:
            if hand.blocks:
                hand.post(Frame(Tag.CANCEL, number, Packed(b"")))

    def close(self) -> None:
        """Ends all workers, within seconds, and lets go of the shared arrays."""
        hands, self.hands = self.hands, []
        bury_all(hands, GRACE)
        self.shelf.close()

    def _open(self, hand: Hand) -> None:
        choices = self._given if self._first is None else self._first.choices
        hand.post(Frame(Tag.OPEN, 0, pack(dict(choices))))

    def _ready(self, hand: Hand, ready: Ready) -> None:
        hand.ready, self._failed_starts = True, 0
        if self._first is None:
            self._first = ready
            for other in self.hands:
                if other is not hand:
                    self._open(other)

    def _news(self, seconds: float) -> Iterator[tuple[Hand, Frame | None]]:
        """The workers that said something, with what they said, or None for those that died."""
        poll, by_number = select.poll(), {hand.channel.fileno(): hand for hand in self.hands}
        for number in by_number:
            poll.register(number, select.POLLIN)
        found = [by_number[number] for number, _ in poll.poll(seconds * 1000)]
        if not found:
            yield from ((hand, None) for hand in list(self.hands) if hand.ended())
        for hand in found:
            try:
                frame = hand.channel.receive()
            except (EOFError, OSError):
                yield hand, None
            else:
                yield hand, frame

    def _replaced(self, hand: Hand) -> Lost:
        """Another worker takes a dead one's place; returns what to say of the block that is lost with it."""
        how, place = hand.bury(), self.hands.index(hand)
        if not hand.ready:
            self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise EngineError(
                f"worker processes cannot start: {FAILED_STARTS} in a row died before they were ready, the last one"
                f" {how}\n{hand.last_words()}"
            )
        self.hands[place] = Hand(self.shelf)
        self.hands[place].post(self._load)
        if self._first is not None or place == 0:
            self._open(self.hands[place])
        return Lost(
            f"EngineError: worker process {hand.pid} {how} while it worked on this client's block", hand.last_words()
        )


def _packed(load: Load) -> Packed:
    try:
        return pack(load)
    except Exception as error:
        reason = unpicklable(load.plan, "the plan") or unpicklable(load.clients, "the clients") or str(error)
        raise EngineError(f"engine 'processes' cannot run this: {reason}") from error


def _read(frame: Frame) -> Done | Lost:
    try:
        told = unpack(frame.packed)
        told = told.whole() if isinstance(told, Flat) else told
    except Exception as error:
        return Lost(f"EngineError: a worker's answer cannot be read here ({type(error).__name__}: {error})", "")
    assert isinstance(told, (Done, Lost))
    return told
