"""A tree's large arrays put aside: the same arrays, in a file without a name, in memory only where they are used."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from insitu.core import arrays, backed, bits, tree
from insitu.core.errors import WireError

LEAST = 2**20
"""Bytes of an array that is worth it."""
_ALIGNED = 64 * 2**10
"""Bytes: every array begins at a page of its own, whatever size pages have."""


def laid(value: Any, folder: Path) -> Any:
    """The tree with its large arrays of floats in a file in this folder, which goes when nobody has the arrays.

    They can be read and written as before; what was one array in two places is two. Where the disk does not take them,
    or they do not travel, the tree is as it was.
    """
    if not any(_large(x) for x in tree.values(value)):
        return value
    try:
        with TemporaryFile(dir=folder, buffering=0) as file:
            return _laid(value, file)
    except (OSError, WireError):  # a full disk holds nobody up: memory is where the arrays are
        return value


def check(value: Any) -> None:
    """Raises OSError where the disk has not taken what ``laid`` wrote: it may have lost it, and give zeros."""
    for x in tree.values(value):
        if _large(x):
            backed.flush(x)


def _laid(value: Any, file: Any) -> Any:
    ends = [0]

    def write(x: Any) -> tuple[int, int] | None:
        """Where in the file the array lies now."""
        if not _large(x):
            return None
        begin = -(-ends[-1] // _ALIGNED) * _ALIGNED
        ends.append(begin + _written(file, begin, bits.raw(x, "the state")[1]))
        return begin, ends[-1]

    places = tree.map(write, value)
    room = backed.of(file, ends[-1])

    def read(x: Any, place: tuple[int, int] | None) -> Any:
        if place is None:
            return x
        name = str(x.dtype).removeprefix("torch.")
        return bits.array(room[slice(*place)], name, bits.kind(x), tuple(x.shape), "the state", ours=True)

    return tree.map(read, value, places)


def _large(x: Any) -> bool:
    if not arrays.is_array(x) or not arrays.is_float(x) or x.nbytes < LEAST:
        return False
    if arrays.is_torch(x):
        return x.device.type == "cpu" and not x.requires_grad
    return bool(x.dtype.isnative)


def _written(file: Any, at: int, raw: Any) -> int:
    """Writes the bytes at this place, and says how many there were."""
    view = memoryview(raw)
    for first in range(0, len(view), backed.PIECE):
        some = view[first : first + backed.PIECE]
        done = 0
        while done < len(some):
            done += os.pwrite(file.fileno(), some[done:], at + first + done)
        backed.let_go(some)
    if hasattr(os, "posix_fadvise"):  # begins to write now, so that nobody has to wait for it later
        os.posix_fadvise(file.fileno(), at, len(view), os.POSIX_FADV_DONTNEED)
    return len(view)
