"""Named places in the code where a test makes something go wrong. Off unless asked for: then it costs one lookup.

A process that is started with ``INSITU_FAILPOINT`` fails at the places it names, ``name[:nth][=what]``, several with
commas between: ``blob.rename.before`` kills it where that is first reached, ``store.commit.after:3=pause`` stops it
the third time. ``what`` is one of

    kill    SIGKILL, as ``kill -9`` and a power cut do; nothing is cleaned up (this is what is meant if nothing is said)
    exit    ends with status 70 at once, and nothing is cleaned up either
    pause   SIGSTOP: it stands still until somebody sends SIGCONT
    error   OSError EIO, as a disk that is broken
    full    OSError ENOSPC, as a disk that is full

Only the nth time counts: before it and after it the place does nothing. Tests in one process use ``armed``.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from insitu.core.errors import ConfigError

VARIABLE = "INSITU_FAILPOINT"
EXIT = 70
Strike = Callable[[str], None]
"""What happens at a place; it is told the name."""


def hit(name: str) -> None:
    """Nothing, unless a failure was asked for at ``name``."""
    if _armed:
        strike = _armed.get(name) or _armed.get("*")
        if strike is not None:
            strike(name)


@contextmanager
def armed(places: Mapping[str, str | Strike]) -> Iterator[None]:
    """Within it, these places fail: ``{"blob.fsync.before": "2=full"}``, or call a function. ``*`` is all others."""
    before = dict(_armed)
    _armed.update({name: _parsed(f"{name}:{how}") if isinstance(how, str) else how for name, how in places.items()})
    try:
        yield
    finally:
        _armed.clear()
        _armed.update(before)


@dataclass
class _At:
    """Does ``what`` the nth time; from any thread."""

    nth: int
    what: Strike
    lock: threading.Lock = field(default_factory=threading.Lock)
    count: int = 0

    def __call__(self, name: str) -> None:
        with self.lock:
            self.count += 1
            now = self.count == self.nth
        if now:
            self.what(name)


def _kill(name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(name: str) -> None:
    os._exit(EXIT)


def _pause(name: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _error(name: str) -> None:
    raise OSError(errno.EIO, f"the failpoint {name} was asked for an error")


def _full(name: str) -> None:
    raise OSError(errno.ENOSPC, f"the failpoint {name} was asked for a full disk")


_WHAT: dict[str, Strike] = {"kill": _kill, "exit": _exit, "pause": _pause, "error": _error, "full": _full}


def _parsed(text: str) -> _At:
    """``[name:]nth``, ``…=what`` or both. Raises ConfigError."""
    place, _, what = text.partition("=")
    nth = place.rpartition(":")[2] if ":" in place else ""
    if (what or "kill") not in _WHAT or not (nth or "1").isdecimal() or nth == "0":
        raise ConfigError(f"{VARIABLE}={text!r} is not name[:nth][=what], where what is one of {', '.join(_WHAT)}")
    return _At(int(nth or 1), _WHAT[what or "kill"])


def _asked_for(text: str) -> dict[str, Strike]:
    """What the environment asks for, by name."""
    places = [one.strip() for one in text.split(",") if one.strip()]
    return {one.partition("=")[0].partition(":")[0]: _parsed(one) for one in places}


_armed: dict[str, Strike] = _asked_for(os.environ.get(VARIABLE, ""))
