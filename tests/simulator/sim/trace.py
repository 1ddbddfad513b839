"""What happened in a simulation, line by line, and a digest of it: the same seed gives the same one."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable


class Trace:
    """The last lines are kept for a report; ``show`` prints all as they come."""

    def __init__(self, now: Callable[[], float], show: bool = False) -> None:
        self._now, self._show = now, show
        self._hash = hashlib.sha256()
        self.last: deque[str] = deque(maxlen=60)
        self.count = 0

    def say(self, who: str, what: str) -> None:
        """One line."""
        line = f"{self._now():12.4f} {who:12} {what}"
        self._hash.update(line.encode() + b"\n")
        self.last.append(line)
        self.count += 1
        if self._show:
            print(line)

    def digest(self) -> str:
        """SHA-256 of all lines."""
        return self._hash.hexdigest()
