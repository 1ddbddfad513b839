"""One worker process, as its parent sees it: started, spoken to, buried."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from typing import IO

from insitu.core.errors import EngineError
from insitu.engines.processes.channel import Channel, Frame, Tag
from insitu.engines.processes.shared import Shelf

# Run with -P and the parent's own path: what is importable there is importable here, and nothing else is. With -m, a
# file named like a library in the working directory would be imported in its place.
_START = (
    "import sys; channel, shelf, parent, *sys.path = sys.argv[1:];"
    " from insitu.engines.processes.worker import main; main(int(channel), int(shelf), int(parent))"
)
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)
_KEEP_MEMORY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""glibc gives large blocks back at once and takes them anew: a page fault every four kilobytes of every activation."""
_LAST_LINES = 40


class Hand:
    """A worker process. ``ready`` once it has an inner engine; ``blocks`` are the numbers of those that it has been
    given, the first of which it works on."""

    def __init__(self, shelf: Shelf) -> None:
        self.ready = False
        self.blocks: list[int] = []
        self.message: int | None = None
        """The number of the shared message that it was sent last."""
        ours, theirs = socket.socketpair()
        try:
            self._process = _started(theirs.fileno(), shelf.fileno())
        except OSError as error:
            ours.close()
            raise EngineError(
                f"a worker process cannot be started ({error}): give fewer, with Processes(workers=…)"
            ) from error
        finally:
            theirs.close()
        self.channel = Channel(ours)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        assert self._process.stdout is not None
        self._printed = threading.Thread(target=_forward, args=(self._process.stdout, self._last), daemon=True)
        self._printed.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.poll() is not None

    def post(self, frame: Frame) -> None:
        """Sends a frame; a worker that is gone is found out by its silence."""
        with contextlib.suppress(OSError):
            self.channel.post(frame)

    def dismiss(self) -> None:
        """Asks it to end, and lets go of the channel."""
        with contextlib.suppress(OSError):
            self.channel.send(Tag.STOP)
        self.channel.close()

    def bury(self, seconds: float = 2.0) -> str:
        """Sees to it that the process ends, within so many seconds or by force. Returns how it ended, in words."""
        self.channel.close()
        try:
            code = self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        # A child of the worker may hold the pipe open; then the thread ends with it.
        self._printed.join(1.0)
        return _in_words(code)

    def last_words(self) -> str:
        """The end of what the process printed."""
        return "".join(self._last).strip()


def bury_all(hands: list[Hand], seconds: float) -> None:
    """Ends the workers, all of them within so many seconds or by force."""
    for hand in hands:
        hand.dismiss()
    until = time.monotonic() + seconds
    for hand in hands:
        hand.bury(until - time.monotonic())


def _started(channel: int, shelf: int) -> subprocess.Popen[str]:
    if not sys.executable:
        raise OSError("sys.executable does not say which Python this is")
    path = [str(entry) or os.getcwd() for entry in sys.path]
    warnings = [f"-W{option}" for option in sys.warnoptions]
    given = [str(channel), str(shelf), str(os.getpid())]
    return subprocess.Popen(
        [sys.executable, "-P", "-u", "-Xfaulthandler", *warnings, "-c", _START, *given, *path],
        pass_fds=(channel, shelf),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), **dict.fromkeys(_KEEP_MEMORY, str(2**30))},
        # Ctrl-C goes to all of a terminal's foreground group; the parent alone decides what it means.
        start_new_session=True,
    )


def _forward(printed: IO[str], last: deque[str]) -> None:
    """Passes on what a worker prints, to stderr: a script's own output stays what the script prints."""
    with printed:
        for line in printed:
            last.append(line)
            # In a notebook that was closed, or at the interpreter's end, there may be nobody to tell.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.write(line)


def _in_words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (by the system, if memory ran out)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
