"""The worker's side: one process that waits for blocks, works them off and tells what came out.

It lives as long as its parent's end of the channel: a parent that dies, however it dies, takes its workers with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import select
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace

from insitu.engines.processes.bench import Bench
from insitu.engines.processes.channel import Channel, Frame, Tag
from insitu.engines.processes.orders import Load, Lost, Order
from insitu.engines.processes.pack import Packed, adopt, pack
from insitu.engines.processes.shared import mapped

LOOK_UP = 2.0
"""Seconds between looks at whether the parent is there, should another process hold its end of the channel open."""
GRACE = 1.0
"""Seconds that a worker has to end by itself once its parent wants no more of it."""


class Inbox:
    """What the parent says, received by a thread, so that a cancellation or the parent's death is seen during work."""

    def __init__(self, channel: Channel, parent: int) -> None:
        """``parent``: its process id, as it gave it: it may be gone by now."""
        self.cancelled = 0
        """Blocks up to this number are no longer wanted."""
        self._channel, self._parent = channel, parent
        self._frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames.get, None)

    def _listen(self) -> None:
        try:
            while self._parent_is_there() and (frame := self._channel.receive()).tag is not Tag.STOP:
                if frame.tag is Tag.CANCEL:
                    self.cancelled = frame.number
                else:
                    self._frames.put(frame)
        except (EOFError, OSError):
            pass
        self._frames.put(None)
        time.sleep(GRACE)
        os._exit(0)  # still busy with a block that nobody waits for

    def _parent_is_there(self) -> bool:
        """True as soon as there is something to receive; False where the parent is another one than the one given."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while not poll.poll(LOOK_UP * 1000):
            if os.getppid() != self._parent:
                return False
        return True


class Outbox:
    """What the parent is told, sent by a thread: where it is at work itself it reads late, and this process goes on."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def put(self, frame: Frame) -> None:
        """To be sent after what was put before."""
        self._frames.put(frame)

    def close(self) -> None:
        """Returns when all is sent, or nobody reads any more."""
        self._frames.put(None)
        self._thread.join(GRACE)

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, and there is nobody to tell
            for frame in iter(self._frames.get, None):
                self._channel.post(frame)


class Worker:
    """Does what the parent's frames say."""

    def __init__(self, channel: Channel, shelf: int, parent: int) -> None:
        self._shelf = shelf
        self._inbox, self._outbox = Inbox(channel, parent), Outbox(channel)
        self._load: Load | None = None
        self._bench: Bench | None = None

    def live(self) -> None:
        """Until the parent wants no more, or is gone."""
        for frame in self._inbox:
            self._do(frame)
        if self._bench:
            self._bench.close()
        self._outbox.close()

    def _do(self, frame: Frame) -> None:
        if frame.tag is Tag.BLOCK:
            self._outbox.put(replace(frame, tag=Tag.DONE, packed=self._work(frame)))
            return
        try:
            if frame.tag is Tag.LOAD:
                self._load = self._unshelved(frame.packed)
                gc.collect()
                gc.freeze()  # libraries, plan and clients stay: looking for garbage in them takes a tenth of a second
            elif frame.tag is Tag.OPEN and self._load:
                self._bench = Bench(self._load, adopt(frame.packed))
                self._outbox.put(Frame(Tag.READY, 0, pack(self._bench.ready())))
            elif frame.tag is Tag.MESSAGE and self._bench:
                self._bench.keep(frame.number, adopt(frame.packed))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self._outbox.put(Frame(Tag.REFUSED, 0, pack(Lost(text, traceback.format_exc()))))

    def _unshelved(self, packed: Packed) -> Load:
        head, places = adopt(packed)
        loaded = adopt(Packed(head, mapped(self._shelf, places)))
        assert isinstance(loaded, Load)
        return loaded

    def _work(self, frame: Frame) -> Packed:
        """The block's answers; whatever goes wrong costs this block its answers, and nothing else."""
        order: Order | None = None
        try:
            order = adopt(frame.packed)
            assert order is not None
            assert self._bench is not None
            return pack(self._bench.work(order, lambda: self._inbox.cancelled < frame.number).flat())
        except BaseException as error:  # SystemExit as well: a client's code may call sys.exit
            text, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
            if order is not None and self._bench is not None:
                self._bench.reopen(order.choices)
            return pack(Lost(text, trace))


def main(descriptor: int, shelf: int, parent: int) -> None:
    """A worker's life, on one end of a channel and the file of shared arrays, inherited from process ``parent``."""
    for inherited in (descriptor, shelf):
        os.set_inheritable(inherited, False)  # what clients' code starts must not keep the channel open
    Worker(Channel(socket.socket(fileno=descriptor)), shelf, parent).live()
