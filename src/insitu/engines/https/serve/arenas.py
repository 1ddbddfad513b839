"""How the coordinator's processes keep freed memory.

glibc gives each of the first threads that allocate a heap of their own, and what one of them frees stays in its heap.
A coordinator's threads take turns with blocks of megabytes: with two heaps for all of them, 16 uploads of 100 MB leave
it 45 MB smaller, and cost the same CPU (`benchmarks/federation.py load`).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_ARENA_MAX = -8
"""M_ARENA_MAX of <malloc.h>; mallopt(3)."""
ARENAS = 2


def few() -> None:
    """Called before there are threads. Does nothing where the C library has no arenas."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, ARENAS)
