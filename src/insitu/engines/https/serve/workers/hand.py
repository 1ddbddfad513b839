"""One worker, as the main process sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from insitu.core import failpoints
from insitu.engines.https.http import Answers
from insitu.engines.https.serve.workers.line import Line, close_all, hand_over
from insitu.engines.https.serve.workers.relayed import Desk

log = logging.getLogger("insitu.https")

# Before anything that takes time to import: the kernel is to kill this process with its parent (PR_SET_PDEATHSIG),
# even where it hangs; elsewhere than on Linux the closed line alone ends it. Run with -P and the main process's own
# path: with -m, a file of the working directory that is named like a library would be imported in its place.
_START = """
import os, sys
line, way, parent, *sys.path = sys.argv[1:]
try:
    import ctypes
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)
except (ImportError, OSError, AttributeError, MemoryError):
    pass  # a hardened service may not
if os.getppid() != int(parent):
    os._exit(70)  # it was gone before that was said
from {entry} import main
sys.exit(main(int(line), int(way)))
"""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LAST = 5.0
"""Seconds that a process has to end after its line has."""


class Hand:
    """A worker process.

    ready   whether it takes connections
    ended   done when its line is lost: then nothing of it runs any more, or soon
    held    connections that it was given and that have not ended, as far as is known
    counts, open, cpu  as it last reported
    """

    def __init__(self, process: subprocess.Popen[bytes], way: socket.socket, desk: Desk) -> None:
        self._process, self._way, self._desk = process, way, desk
        self.ready = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.counts: Counter[str] = Counter()
        self.open: dict[str, int] = {}
        self.cpu = 0.0
        self.sheds = 0
        """Connections that it was told to let go."""
        self.silence = 0
        """How often somebody has looked since it last said something."""
        self._given = self._over = 0

    @classmethod
    async def started(cls, table: Answers, entry: str, told: Mapping[str, Any], first: bool) -> Hand:
        """A process that runs ``entry`` and is told to begin. Raises OSError.

        first  whether it may have the failpoint that this process was started with: those that follow may not, or
               they would die of it as well
        """
        ours, theirs = socket.socketpair()
        way, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        way.setblocking(False)
        try:
            process = _started(entry, theirs.fileno(), other.fileno(), first)
        except OSError:
            close_all(ours, way)
            raise
        finally:
            close_all(theirs, other)
        hand = cls(process, way, Desk(table))
        hand._desk.line = await Line.on(ours, hand._hear, hand._lost)
        hand.tell("begin", **told)
        return hand

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def held(self) -> int:
        """Connections that it has."""
        return self._given - self._over

    def take(self, sock: socket.socket, address: str) -> bool:
        """Gives it a connection; False where it cannot take one now."""
        given = hand_over(self._way, sock, address)
        self._given += given
        return given

    def tell(self, what: str, **told: Any) -> None:
        """Says something to it that needs no answer."""
        self._desk.line.tell(what, **told)

    def shed(self, connections: int) -> None:
        """So many of its connections are to end with their next answers."""
        if connections != self.sheds:
            self.sheds = connections
            self.tell("shed", connections=connections)

    def kill(self) -> None:
        """Ends it at once."""
        if self._process.poll() is None:
            self._process.kill()

    async def buried(self) -> str:
        """Sees to it that the process ends, and nothing waits for it; how it ended, in words."""
        return _in_words(await asyncio.to_thread(self._bury))

    def answering(self) -> list[asyncio.Task[None]]:
        """What it had asked and is being answered, whether it is still there or not."""
        return self._desk.tasks()

    def _bury(self) -> int:
        try:
            return self._process.wait(LAST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _hear(self, what: str, number: int, told: dict[str, Any], data: bytes) -> None:
        self.silence = 0
        if number:
            self._desk.hear(what, number, told, data)
        elif what == "ready":
            self.ready = True
        elif what == "report":
            self.counts, self.open = Counter(told["counts"]), told["open"]
            self._over, self.cpu = told["over"], told["cpu"]
        elif what == "log":
            logging.getLogger(told["name"]).log(told["level"], "%s", told["text"])
        elif what == "bye":
            self.ready = False
            self._desk.line.close()

    def _lost(self) -> None:
        self.ready = False
        self._way.close()
        self._desk.lost()
        if not self.ended.done():
            self.ended.set_result(None)


def _started(entry: str, line: int, way: int, first: bool) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise OSError("sys.executable does not say which Python this is")
    path = [str(one) or os.getcwd() for one in sys.path]
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
    if not first:
        environment.pop(failpoints.VARIABLE, None)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START.format(entry=entry), str(line), str(way), str(os.getpid()), *path],
        pass_fds=(line, way),
        stdin=subprocess.DEVNULL,
        env=environment,
        # Ctrl-C goes to all of a terminal's foreground group; the main process alone decides what it means.
        start_new_session=True,
    )


def _in_words(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
