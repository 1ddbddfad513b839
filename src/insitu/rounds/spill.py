"""A file of its own for what does not fit in memory: pieces of bytes, written once, read again, and let go."""

from __future__ import annotations

import os
import tempfile
import weakref
from typing import NamedTuple

from insitu.core.errors import StoreError

GRAIN = 4096
"""Bytes that a piece is rounded up to, so that the room of one that was let go fits the next of nearly its size."""


class Place(NamedTuple):
    """Where a piece lies, and how long it is, in bytes."""

    offset: int
    size: int


class Spill:
    """A temporary file without a name: it is gone with the process, however that ends.

    ``read`` and ``release`` may be called by any thread, ``write`` by one at a time.
    """

    def __init__(self) -> None:
        self.end = 0
        """Bytes that the file has grown to."""
        with tempfile.TemporaryFile(buffering=0) as file:
            self._number = os.dup(file.fileno())
        # A result reads its memories for as long as it lives: nobody else knows when the file is not needed any more.
        weakref.finalize(self, os.close, self._number)
        self._free: dict[int, list[int]] = {}

    def write(self, data: bytes) -> Place:
        """Keeps the bytes. Raises StoreError where the disk has no room for them."""
        room = -(-len(data) // GRAIN) * GRAIN
        free = self._free.setdefault(room, [])
        reused = bool(free)
        offset = free.pop() if reused else self.end
        try:
            self._write_at(offset, data)
        except OSError as error:
            if reused:
                free.append(offset)
            raise StoreError(
                f"client memories beyond memory_budget do not fit in {tempfile.gettempdir()} ({error.strerror}): set"
                " TMPDIR to a folder with room, or give a larger memory_budget"
            ) from error
        self.end = max(self.end, offset + room)
        return Place(offset, len(data))

    def read(self, place: Place) -> bytes:
        """The bytes again."""
        data = os.pread(self._number, place.size, place.offset)
        if len(data) != place.size:
            raise StoreError(f"the file of client memories is {place.size - len(data)} bytes short: resume the run")
        return data

    def release(self, place: Place) -> None:
        """The bytes are not wanted any more: their room is taken by the next of the same size."""
        self._free.setdefault(-(-place.size // GRAIN) * GRAIN, []).append(place.offset)

    def _write_at(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._number, view, offset)
            view, offset = view[written:], offset + written
