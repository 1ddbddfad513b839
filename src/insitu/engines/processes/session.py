"""The engine at work: blocks of clients go to whichever worker is free, and their answers are passed on in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from insitu.core import spans
from insitu.core.protocols import Session, Setting
from insitu.core.types import Answer, Failure, Folded, LooksAhead, Task
from insitu.engines.processes.alike import Alike, alike
from insitu.engines.processes.channel import Frame, Tag
from insitu.engines.processes.hand import Hand
from insitu.engines.processes.line import Block, Line, places, told
from insitu.engines.processes.orders import Done, Load, Order
from insitu.engines.processes.pack import pack
from insitu.engines.processes.pool import Pool
from insitu.engines.processes.started import Started
from insitu.rounds.blocks import cohort_size

AHEAD = 4
"""Blocks a worker that may be under way or wait for the ones before them."""
OWN = ("workers", "inner")
"""The choices that are this engine's; all others are the inner engine's."""


class ProcessesSession:
    """Worker processes at work on one run, and, where there is a session ``here``, this process beside them."""

    def __init__(self, setting: Setting, workers: int, options: Mapping[str, Any], here: Session | None = None) -> None:
        """``workers`` are the other processes; ``here`` computes as they do, and closes with its owner."""
        self.setting, self._here = setting, here
        self._heard: set[str] = set()
        self._numbers = count(1)
        self._shared: tuple[Any, Frame] | None = None
        self._version = 0
        self._last = 0
        """The highest number of a block that was handed out."""
        self._settled = False
        self._started = Started()
        self._all_there = False
        """Whether all workers have been ready once, which clients at their own pace wait for."""
        self._pool = Pool(workers, Load(setting.plan, setting.clients, setting.rounds, setting.seed, options))
        first = self._pool.start({name: x for name, x in setting.choices.items() if name not in OWN})
        at_work = workers + (here is not None)
        self.choices: dict[str, Any] = {"workers": at_work, "inner": first.engine, **first.choices}
        self._notify(first.notices)
        self._share = -(-cohort_size(setting) // at_work)

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        line = Line(work, self._numbers, AHEAD * self.choices["workers"], self._together())
        try:
            self._hear(line, wait=False)
            while not line.over():
                self._hand_out_all(line, 0)
                idle = False
                if done := line.first():
                    self._learn(done, line)
                    yield from told(done)
                elif self._here and (block := line.next(self._here)):
                    # Nobody listens while this block is worked off: each worker has another one to go on with.
                    self._hand_out_all(line, 1)
                    self._work_here(block, line, self._here)
                else:
                    idle = line.waiting()
                self._hear(line, wait=idle)
        finally:
            self._pool.cancel(self._last)

    @property
    def seats(self) -> int:
        """The workers."""
        return len(self._pool.hands)

    def start(self, task: Task) -> None:
        """A free worker begins at once; otherwise the next to be free. Waits until all workers are there, so that the
        first to be up does not have the others' share."""
        self._started.add(task)
        while not self._all_there:
            with spans.span("start", "workers"):
                for number, done in self._pool.events(not self._pool.all_ready()):
                    self._started.take(number, done)
            self._all_there = self._pool.all_ready()
        self._hand_out_started()

    def arrived(self) -> Answer | Failure:
        """What the next worker to finish tells; one that died is a failure of its client."""
        while (item := self._started.first()) is None:
            self._hand_out_started()
            with spans.span("idle", "workers"):
                for number, done in self._pool.events(True):
                    self._started.take(number, done)
        self._hand_out_started()
        return item

    def close(self) -> None:
        """Ends all workers."""
        self._pool.close()

    def _together(self) -> int:
        """Lanes are the faster the more clients stand side by side, up to a fair share for each worker."""
        return min(int(self.choices.get("lanes", 0)), self._share)

    def _hear(self, line: Line, *, wait: bool) -> None:
        with spans.span("idle" if wait else "other", "workers"):
            for number, done in self._pool.events(wait):
                if not self._started.take(number, done):
                    line.take(number, done, self._version)

    def _hand_out_all(self, line: Line, ahead: int) -> None:
        """A block to each worker that has no more than so many."""
        handed: list[tuple[Hand, Block]] = []
        for hand in self._pool.free(ahead):
            if (block := line.next(hand)) is None:
                break
            handed.append((hand, block))
        for hand, block in handed:  # everyone has one before anyone is told of another
            self._hand_out(hand, block, line.keep(hand))

    def _work_here(self, block: Block, line: Line, here: Session) -> None:
        for name in [name for name in here.choices if name not in OWN]:
            del here.choices[name]
        here.choices.update(self._inner_choices())
        block.version = self._version
        if isinstance(self.setting.clients, LooksAhead):
            # The server has announced the whole cohort, most of which the workers read.
            self.setting.clients.ahead([*places(block), *places(line.keep(here))])
        items = list(here.run(block.tasks))
        choices = {name: value for name, value in here.choices.items() if name not in OWN}
        line.take(block.number, Done(items, choices), self._version)

    def _hand_out(self, hand: Hand, block: Block, after: Block | None) -> None:
        tasks, message = self._without_message(hand, block.tasks)
        order = Order(tasks, self._memories(block.tasks), message, self._inner_choices(), places(after))
        block.version = self._version
        hand.blocks.append(block.number)
        self._last = max(self._last, block.number)
        hand.post(Frame(Tag.BLOCK, block.number, pack(order)))

    def _hand_out_started(self) -> None:
        """A client to each worker that has nothing to do."""
        for hand, task in self._started.pairs(self._pool.free()):
            tasks, message = self._without_message(hand, [task])
            order = Order(tasks, self._memories([task]), message, self._inner_choices(), alone=True)
            number = next(self._numbers)
            self._started.handed(number, task)
            hand.blocks.append(number)
            hand.post(Frame(Tag.BLOCK, number, pack(order)))

    def _memories(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Those that there are: of most methods none."""
        if not self.setting.memories:
            return {}
        found = {task.client: self.setting.memories.get(task.client) for task in tasks}
        return {client: memory for client, memory in found.items() if memory is not None}

    def _without_message(self, hand: Hand, tasks: Sequence[Task]) -> tuple[Alike[Task], int | None]:
        """A message that all tasks share is packed once a round, and sent once a worker and round."""
        message = tasks[0].message
        if any(task.message is not message for task in tasks):
            return alike(tasks), None
        if self._shared is None or self._shared[0] is not message:
            self._shared = message, Frame(Tag.MESSAGE, next(self._numbers), pack(message))
        frame = self._shared[1]
        if hand.message != frame.number:
            hand.post(frame)
            hand.message = frame.number
        return alike(tasks, message={}), frame.number

    def _learn(self, block: Block, line: Line) -> None:
        """What an inner engine finds out about itself with its first block holds for all workers and the blocks after.

        In one process it is the run's first block that shows whether the model can be run in lanes. Here each worker
        has a first block; so that their number does not matter, only the run's counts, and blocks that were worked off
        without knowing are worked off again.
        """
        if not isinstance(block.done, Done):
            return
        choices = dict(block.done.choices)
        if choices != self._inner_choices():
            if self._settled:
                return
            self.choices.update(choices)
            self._version += 1
            line.again()
        self._notify(block.done.notices)
        if block.tasks[0].kind == "train" and any(not isinstance(item, Failure) for item in block.done.items):
            self._settled = True

    def _inner_choices(self) -> dict[str, Any]:
        return {name: value for name, value in self.choices.items() if name not in OWN}

    def _notify(self, notices: Iterable[str]) -> None:
        """Passes on what inner engines have to say: once, not once a worker."""
        for notice in notices:
            if notice not in self._heard:
                self._heard.add(notice)
                self.setting.notify(notice)
