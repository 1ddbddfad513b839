"""The arrays of the plan and the clients in one file that all workers map, so that they are in memory once.

The file has no name: it is gone when the last process that has it open is, however that ends. A worker's view of it is
private: it shares the memory as long as nobody writes, and code that writes into its input (as in one process it may)
gets a copy of the pages that it writes to. So arrays are not read-only, and nothing has to copy them to be safe.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import IO

from insitu.core.errors import EngineError

Places = list[tuple[int, int]]
"""Where each buffer is: its offset and its length in bytes."""

MEMORY = "/dev/shm"
ALIGNED = 64
"""Bytes: as wide as the widest vector registers, so that arithmetic takes the same path as on fresh memory."""
AT_MOST = 0.8
"""The share of the free memory that may be taken."""


class Shelf:
    """The file, as its owner sees it."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        """Writes the buffers. Raises EngineError where there is no room for them."""
        self.places: Places = []
        end = 0
        for buffer in buffers:
            self.places.append((end, buffer.nbytes))
            end += -(-buffer.nbytes // ALIGNED) * ALIGNED
        where = room_for(end)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=where)  # noqa: SIM115  # closed by ``close``
        try:
            for (offset, _), buffer in zip(self.places, buffers, strict=True):
                self._file.seek(offset)
                self._file.write(buffer)
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # what is left in its buffer does not fit either
                self._file.close()
            raise EngineError(
                f"{end / 1e9:.1f} GB of arrays of the plan and the clients do not fit in {where} ({error.strerror}):"
                " set TMPDIR to a folder with room, or load clients when they are asked for (Clients.lazy)"
            ) from error

    def fileno(self) -> int:
        """The descriptor that workers inherit."""
        return self._file.fileno()

    def close(self) -> None:
        """Lets go of the file; workers that have mapped it keep it."""
        self._file.close()


def mapped(descriptor: int, places: Places) -> list[memoryview]:
    """The buffers, as a worker sees them. Takes the descriptor."""
    try:
        if not places:
            return []
        view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
        return [view[offset : offset + size] for offset, size in places]
    finally:
        os.close(descriptor)


def room_for(size: int) -> str:
    """A folder in memory where that has room for so many bytes, else the one for temporary files."""
    try:
        disk = os.statvfs(MEMORY)
        free = min(disk.f_bavail * disk.f_frsize, _free_memory())
    except OSError:
        return tempfile.gettempdir()
    return MEMORY if size <= AT_MOST * free and os.access(MEMORY, os.W_OK) else tempfile.gettempdir()


def _free_memory() -> int:
    """Bytes that can be had without paging: what is free or could be freed."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return int(found["MemAvailable"].split()[0]) * 1024
