"""Who is there: a line from every rank to rank 0, over which it gives signs of life and says where it has arrived.

Collectives of torch wait for everyone, and where one does not come they end in a timeout that does not say who. So
before ranks exchange anything they meet here: rank 0 knows who has arrived, who is silent, and whose line broke, and
tells the others. A process that is killed is noticed at once, for its system closes its line; one that hangs, when it
has been silent for ``timeout`` seconds. How long a rank works does not matter as long as it gives signs of life.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from insitu.core.errors import EngineError

_FRAME = struct.Struct("<BIqI")
"""Tag, rank, number, and how many bytes of text follow."""
LONGEST_TEXT = 2000


class Say(IntEnum):
    """What is said on a line."""

    HELLO = 1  # up: the token
    BEAT = 2  # both ways
    ARRIVED = 3  # up: the meeting's number
    GO = 4  # down: the number of the meeting at which all are
    GONE = 5  # down: a rank, and what became of it
    LEAVE = 6  # up: why
    LETTER = 7  # both ways: there is something to be taken
    CALL = 8  # down: the letter is taken now (1), or is not wanted (0)


class Watch:
    """One rank's view of all others. ``lines``: on rank 0 one to every other rank, on these the one to rank 0."""

    def __init__(self, rank: int, world: int, lines: dict[int, socket.socket], timeout: float) -> None:
        self.rank, self.world, self.timeout = rank, world, timeout
        self.gone: dict[int, str] = {}
        """Ranks that are no longer there, and what became of them, in the order in which it was noticed."""
        self._lines = lines
        self._heard = dict.fromkeys(lines, time.monotonic())
        self._read = {peer: bytearray() for peer in lines}
        self._at = dict.fromkeys(range(world), 0)
        self._met = 0
        self._letters: deque[int] = deque()
        self._calls: deque[int] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._beat = min(1.0, timeout / 5)
        self._thread = threading.Thread(target=self._live, name="insitu-watch", daemon=True)
        self._thread.start()

    def meet(self, doing: str) -> None:
        """Returns when every rank has called this as often as this one. Raises EngineError, naming who is missing."""
        with self._changed:
            if self._over:
                raise EngineError(f"this rank has left the others, so there is no {doing}: start all of them again")
            self._at[self.rank] += 1
            number = self._at[self.rank]
            if self.rank == 0:
                self._go_on()
            else:
                self._say(0, Say.ARRIVED, number)
            while self._met < number:
                if self.gone:
                    raise EngineError(self.missing(doing))
                self._changed.wait(1.0)

    def tell(self, peer: int) -> None:
        """Tells a rank at the other end of a line that there is something for it to take."""
        with self._changed:
            self._say(peer, Say.LETTER, 0)

    def letter(self, doing: str) -> int:
        """The rank that has something for this one: the first to say so; waits for it. Raises EngineError as ``meet``
        does, as soon as any rank is gone."""
        return self._next(self._letters, doing)

    def call(self, peer: int, wanted: bool) -> None:
        """Rank 0: takes what the rank has for it, or does not want it."""
        with self._changed:
            self._say(peer, Say.CALL, int(wanted))

    def called(self, doing: str) -> bool:
        """Other ranks: waits until rank 0 takes what there is for it; whether it wants it."""
        return bool(self._next(self._calls, doing))

    def _next(self, queue: deque[int], doing: str) -> int:
        with self._changed:
            while not self.gone and not queue and not self._over:
                self._changed.wait(1.0)
            if self.gone:
                raise EngineError(self.missing(doing))
            if self._over:
                raise EngineError(f"this rank has left the others, so there is no {doing}: start all of them again")
            return queue.popleft()

    def missing(self, doing: str) -> str:
        """Who is gone, as a sentence."""
        ((rank, why), *others) = self.gone.items()
        more = f" (and then {', '.join(f'rank {r}' for r, _ in others)})" if others else ""
        return f"rank {rank} of {self.world} is missing while {doing}: {why}{more}. The round under way does not count"

    def leave(self, why: str) -> None:
        """Says goodbye, with the reason; nothing is expected of this rank from here on."""
        with self._changed:
            if self._over:
                return
            self._over = True
            for peer in self._lines:
                self._say(peer, Say.GONE if self.rank == 0 else Say.LEAVE, 0, why or "it has ended")
            self._changed.notify_all()

    def close(self) -> None:
        """Says goodbye, and returns when the lines are closed."""
        self.leave("")
        self._thread.join()

    # ------------------------------------------------------------ the thread

    def _live(self) -> None:
        try:
            self._watch()
        finally:
            for line in self._lines.values():
                line.close()

    def _watch(self) -> None:
        said = 0.0
        while not self._over:
            now = time.monotonic()
            with self._changed:
                if now - said >= self._beat:
                    for peer in self._open():
                        self._say(peer, Say.BEAT, 0)
                    said = now
                for peer in self._open():
                    if now - self._heard[peer] > self.timeout:
                        self._lost(
                            peer, f"it has given no sign of life for {self.timeout:g} s (timeout={self.timeout:g})"
                        )
            lines = {self._lines[peer]: peer for peer in self._open()}
            if not lines:
                return
            for line in select.select(list(lines), [], [], self._beat / 2)[0]:
                self._hear(lines[line], line)

    def _open(self) -> list[int]:
        return [peer for peer in self._lines if peer not in self.gone]

    def _hear(self, peer: int, line: socket.socket) -> None:
        try:
            data = line.recv(65536)
        except OSError:
            data = b""
        with self._changed:
            if not data:
                self._lost(peer, "its process is gone (its connection was closed)")
                return
            self._heard[peer] = time.monotonic()
            buffer = self._read[peer]
            buffer += data
            while len(buffer) >= _FRAME.size:
                tag, rank, number, length = _FRAME.unpack_from(buffer)
                if len(buffer) < _FRAME.size + length:
                    break
                text = bytes(buffer[_FRAME.size : _FRAME.size + length]).decode(errors="replace")
                del buffer[: _FRAME.size + length]
                self._take(peer, Say(tag), rank, number, text)

    def _take(self, peer: int, said: Say, rank: int, number: int, text: str) -> None:
        if said is Say.ARRIVED:
            self._at[peer] = number
            self._go_on()
        elif said is Say.GO:
            self._met = max(self._met, number)
            self._changed.notify_all()
        elif said is Say.LETTER:
            self._letters.append(peer)
            self._changed.notify_all()
        elif said is Say.CALL:
            self._calls.append(number)
            self._changed.notify_all()
        elif said is Say.LEAVE:
            self._lost(peer, text)
        elif said is Say.GONE:
            self.gone.setdefault(rank, text)
            self._changed.notify_all()

    def _go_on(self) -> None:
        """Rank 0: tells all when all are there."""
        met = min(self._at.values())
        if met > self._met:
            self._met = met
            for peer in self._open():
                self._say(peer, Say.GO, met)
            self._changed.notify_all()

    def _lost(self, peer: int, why: str) -> None:
        if peer in self.gone:
            return
        self.gone[peer] = why
        for other in self._open():
            if self.rank == 0:
                self._say(other, Say.GONE, 0, why, rank=peer)
        self._changed.notify_all()

    def _say(self, peer: int, what: Say, number: int, text: str = "", rank: int | None = None) -> None:
        said = text.encode()[:LONGEST_TEXT]
        frame = _FRAME.pack(what, self.rank if rank is None else rank, number, len(said)) + said
        with contextlib.suppress(OSError):  # whoever is gone is noticed where it is read
            self._lines[peer].sendall(frame)


def lines(
    rank: int,
    world: int,
    host: str,
    publish: Callable[[str], None],
    look_up: Callable[[], str],
    token: str,
    timeout: float,
) -> dict[int, socket.socket]:
    """The lines of this rank. Rank 0 listens at ``host`` and publishes the port; whoever knows the token may connect.

    Raises EngineError, naming the ranks that have not come within ``timeout`` seconds.
    """
    if rank:
        return {0: _called(rank, host, int(look_up()), token, timeout)}
    found: dict[int, socket.socket] = {}
    until = time.monotonic() + timeout
    inside = host in ("localhost", "127.0.0.1", "::1")
    with socket.create_server(("127.0.0.1" if inside else "", 0)) as server:
        publish(str(server.getsockname()[1]))
        while len(found) < world - 1:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                line, _ = server.accept()
                line.settimeout(max(0.01, until - time.monotonic()))
                tag, peer, _, length = _FRAME.unpack(_exactly(line, _FRAME.size))
                if tag == Say.HELLO and length <= LONGEST_TEXT and _exactly(line, length) == token.encode():
                    found[peer] = _settled(line, timeout)
                else:
                    line.close()
            except TimeoutError:
                late = [r for r in range(1, world) if r not in found]
                raise EngineError(never_came(late, world, timeout)) from None
            except OSError:
                continue  # somebody else's connection, closed again
    return found


def never_came(late: list[int], world: int, timeout: float) -> str:
    """Who has not come."""
    who = f"rank{'s' * (len(late) > 1)} {', '.join(map(str, late))}"
    return (
        f"{who} of {world} did not come within {timeout:g} s (timeout={timeout:g}): see what became of"
        f" {'them' if len(late) > 1 else 'it'}, or start with as many processes as WORLD_SIZE says"
    )


def _called(rank: int, host: str, port: int, token: str, timeout: float) -> socket.socket:
    line = socket.create_connection((host, port), timeout=timeout)
    text = token.encode()
    line.sendall(_FRAME.pack(Say.HELLO, rank, 0, len(text)) + text)
    return _settled(line, timeout)


def _settled(line: socket.socket, timeout: float) -> socket.socket:
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.settimeout(timeout)
    return line


def _exactly(line: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := line.recv(size - len(data))):
            raise OSError("closed")
        data += more
    return data
