"""A file that is read here and there, and what it will be asked for next.

A system reads on behind what was asked for, megabytes of it where the disk is fast, because files are mostly read from
front to back. Clients are drawn at random: what was read on is never used, and throws out of the page cache what would
have been. So files are opened with the advice that reads are random, and what will be read next is named instead.

What is read goes to memory that was read into before: fresh memory costs a page fault every four kilobytes, which takes
longer than copying them out of the page cache.

A file that does not fit into memory passes through the page cache without staying there: for each page that comes
another has to go, and the two cost several times what the disk's own transfer does. So the cache is left the first part
of such a file, as much as may stay, and what lies behind it is read past the cache, straight into the client's memory.
"""

from __future__ import annotations

import math
import os
import threading
from collections import defaultdict
from contextlib import suppress
from typing import Any

import numpy as np

from insitu.core.limits import allowed_memory

NAMED = 512 << 10
"""Bytes named in one call: a system takes no more than about that much of a longer one."""
AT_ONCE = 4
"""Reads that a disk is given at a time."""

POOLED = 64 << 10
"""Bytes from which memory is used again; smaller pieces are at hand with the allocator."""
KEPT = 128 << 20
"""Bytes that may lie idle."""


PAGE = 4096
"""Where pieces of memory begin, and what a disk reads at least past the cache."""
CACHED = 0.5
"""The share of the memory that this process may have which one file may take as page cache."""


def stays_cached(size: int) -> int:
    """How many of a file's bytes, from its beginning, the page cache is left to keep; the others are read past it."""
    most = int(CACHED * allowed_memory())
    return size if size <= most else most


class Pool:
    """Pieces of memory, each of which comes back when the last array that it was lent to is gone."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept, self._idle = kept, 0
        self._pieces: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        # An array may go, and bring its memory back, whenever Python collects garbage: here as well.
        self._turn = threading.RLock()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """As ``numpy.empty``."""
        size = math.prod(shape) * dtype.itemsize
        if size < POOLED:
            return np.empty(shape, dtype)
        step = 1 << (size.bit_length() - 3)
        whole = -(-size // step) * step  # of sizes that differ by less than a quarter, one fits all
        with self._turn:
            if pieces := self._pieces[whole]:
                piece = pieces.pop()
                self._idle -= whole
            else:
                raw = np.empty(whole + PAGE, np.uint8)
                start = -raw.ctypes.data % PAGE
                piece = raw[start : start + whole]
        return np.asarray(_Lent(self, piece))[:size].view(dtype).reshape(shape)

    def back(self, piece: np.ndarray) -> None:
        """Nobody uses this piece any more."""
        with self._turn:
            if self._idle + piece.nbytes <= self._kept:
                self._pieces[piece.nbytes].append(piece)
                self._idle += piece.nbytes


class _Lent:
    """What the arrays that lie in a piece of memory keep alive."""

    def __init__(self, pool: Pool, piece: np.ndarray) -> None:
        self._pool, self._piece = pool, piece
        self.__array_interface__ = piece.__array_interface__

    def __del__(self) -> None:
        self._pool.back(self._piece)


POOL = Pool()
"""This process's."""


class File:
    """A file open for reading, from any thread. Raises OSError where it cannot be opened."""

    def __init__(self, path: str) -> None:
        self._descriptor = self._past = -1
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._advise(0, 0, "POSIX_FADV_RANDOM")
        self._cached = stays_cached(self.size)
        if self._cached < self.size and hasattr(os, "O_DIRECT"):
            with suppress(OSError):  # a file system that has no such thing: through the cache then
                self._past = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)

    @property
    def size(self) -> int:
        """The file's bytes, now."""
        return os.fstat(self._descriptor).st_size

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The numbers from byte ``offset`` on, in memory of the pool. Raises OSError where the file ends before."""
        size = math.prod(shape) * dtype.itemsize
        if self._goes_past(offset, size) and offset % dtype.itemsize == 0:
            low = offset // PAGE * PAGE
            pages = POOL.empty((-(-(offset + size) // PAGE) * PAGE - low,), np.dtype(np.uint8))
            with suppress(OSError):  # what the cache can get it will, and else say why not
                _fill(self._past, low, memoryview(pages), offset + size - low)
                return pages[offset - low :][:size].view(dtype).reshape(shape)
        found = POOL.empty(shape, dtype)
        self.read(offset, found)
        return found

    def read(self, offset: int, into: np.ndarray) -> None:
        """Fills a contiguous array with the bytes from ``offset`` on. Raises OSError where the file ends before."""
        view = memoryview(into).cast("B") if into.nbytes else memoryview(b"")
        _fill(self._descriptor, offset, view, len(view))

    def soon(self, offset: int, size: int) -> None:
        """These bytes will be read next: the disk may fetch them meanwhile, where the cache is to have them."""
        if self._goes_past(offset, size):
            return
        for start in range(offset, offset + size, NAMED):
            self._advise(start, min(NAMED, offset + size - start), "POSIX_FADV_WILLNEED")

    def _goes_past(self, offset: int, size: int) -> bool:
        """Whether these bytes are read past the cache: not a few rows here and there, of which it holds many a page."""
        return self._past >= 0 and offset >= self._cached and size >= POOLED

    def _advise(self, offset: int, size: int, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):  # Linux; elsewhere reads are as the system likes them
            os.posix_fadvise(self._descriptor, offset, size, getattr(os, advice))

    def __del__(self) -> None:
        for descriptor in (self._descriptor, self._past):
            if descriptor >= 0:
                os.close(descriptor)

    def __reduce__(self) -> Any:
        raise TypeError("an open file cannot be sent: send its path")


def _fill(descriptor: int, offset: int, view: memoryview, wanted: int) -> None:
    """Reads on until the first ``wanted`` bytes of the view are there."""
    at = 0
    while at < wanted:
        got = os.preadv(descriptor, [view[at:]], offset + at)
        if not got:
            raise OSError(f"the file ends at byte {offset + at}")
        at += got
