"""CPU time and memory of a process and all its descendants, as the kernel counts them (Linux)."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

from insitu.core.errors import EngineError

PROC = Path("/proc")


def tree_of(root: int) -> list[int]:
    """``root`` and its descendants, those without a parent that is alive left out."""
    if not PROC.is_dir():
        raise EngineError("the CPU and memory of processes are read from /proc, which is not there: measure on Linux")
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def cpu_seconds(root: int) -> float:
    """CPU seconds of the tree since its processes began, those of ended and waited-for children included.

    The kernel counts in ticks of 10 ms: take differences over many.
    """
    ticks = 0
    for process in tree_of(root):
        if fields := _fields(process):
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_bytes(root: int) -> int:
    """Proportional set size of the tree: what it would free, pages shared with others counted in part."""
    total = 0
    for process in tree_of(root):
        try:
            text = (PROC / str(process) / "smaps_rollup").read_text(encoding="ascii")
        except OSError:  # it has just ended
            continue
        total += next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total


class PeakMemory:
    """Samples :func:`pss_bytes` in a thread while the block runs; ``peak`` is the largest seen, in bytes."""

    def __init__(self, root: int, every: float = 0.5) -> None:
        self.peak = 0
        self._root, self._every = root, every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.peak = max(self.peak, pss_bytes(self._root))

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, pss_bytes(self._root))


def _fields(process: int) -> list[str]:
    """The fields of ``stat`` after the name, which may hold spaces: [1] the parent, [11:15] the times; none if gone."""
    try:
        text = (PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
