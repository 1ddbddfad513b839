"""Memory that a file backs: there while somebody uses it.

Whoever goes through a large array piece by piece lets go of each piece behind it. Where the array lies in a file, that
takes the memory of a piece; where it does not, nothing happens.
"""

from __future__ import annotations

import mmap
import sys
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

PIECE = 4 * 2**20
"""Bytes that are used before they are let go of."""
_LARGE = 2 * 2**20
"""Bytes of the large pages in which Linux may map a file."""

_places: WeakKeyDictionary[mmap.mmap, tuple[int, int]] = WeakKeyDictionary()
"""Of each file that is mapped: the address of its first byte, and its bytes."""

_lock = Lock()


def of(file: Any, length: int) -> memoryview:
    """The first ``length`` bytes of an open file as memory. What is written there goes to the file, and is not lost."""
    mapping = mmap.mmap(file.fileno(), length)
    place = (np.frombuffer(mapping, np.uint8).ctypes.data, length)
    with _lock:
        _places[mapping] = place
    return memoryview(mapping)


def let_go(x: Any) -> None:
    """Gives back the memory of a contiguous array or buffer that lies in a file, until somebody looks at it.

    That of its neighbours up to the borders of large pages as well: nothing is lost, and what is left behind in one
    page would keep all of a large one.
    """
    mapping, at, length = _found(x)
    if mapping is not None and hasattr(mapping, "madvise"):
        begin = at // _LARGE * _LARGE
        mapping.madvise(mmap.MADV_DONTNEED, begin, at + length - begin)


def flush(x: Any) -> None:
    """Waits until the disk has the file in which an array lies. Raises OSError where it has lost anything of it."""
    mapping, _, _ = _found(x)
    if mapping is not None:
        mapping.flush()


def _found(x: Any) -> tuple[mmap.mmap | None, int, int]:
    """The mapping in which an array or buffer lies, where in it, and how many bytes of it; None where it is in none."""
    if not _places:
        return None, 0, 0
    first, length = _place(x)
    with _lock:
        places = list(_places.items())
    for mapping, (start, size) in places:
        if start <= first and first + length <= start + size:
            return mapping, first - start, length
    return None, 0, 0


def _place(x: Any) -> tuple[int, int]:
    """The address of the first byte, and how many there are."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return x.data_ptr(), x.numel() * x.element_size()
    array = x if isinstance(x, np.ndarray) else np.frombuffer(x, np.uint8)
    return array.ctypes.data, array.nbytes
