"""Arrays that lie on a disk, for whoever needs no more than a piece of each at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from insitu.core import bits
from insitu.core.arrays import Array

PIECE = 2**19
"""Bytes of an array that are in memory together: with a sum and a product of them they stay in a processor's cache."""


@dataclass(frozen=True)
class Stored:
    """A leaf of a tree whose numbers are read when they are needed.

    dtype, kind  as :mod:`insitu.core.bits` has them
    first        the byte at which it begins, in what ``read(first, count)`` reads from
    """

    shape: tuple[int, ...]
    dtype: str
    kind: str
    first: int
    read: Callable[[int, int], memoryview]

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return prod(self.shape) * self._size

    @property
    def _size(self) -> int:
        little = bits.dtype(self.dtype, self.kind)
        assert little is not None  # whoever has read the header has seen that
        return little.itemsize

    def piece(self, at: int, count: int) -> Array:
        """So many elements from ``at`` on, flat, in memory that is the caller's."""
        raw = self.read(self.first + at * self._size, count * self._size)
        return bits.array(raw, self.dtype, self.kind, (count,), "an array of an update", ours=True)


def together(leaves: Sequence[Stored]) -> Iterator[tuple[int, Iterator[Array]]]:
    """The element at which a piece begins, and that piece of each of these arrays of one shape, one by one.

    Arrays without elements have one piece without any.
    """
    count = prod(leaves[0].shape)
    step = max(1, PIECE // leaves[0]._size)
    for at in range(0, max(1, count), step):
        n = min(step, count - at)
        yield at, (leaf.piece(at, n) for leaf in leaves)
