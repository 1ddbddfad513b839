"""Arrays that lie on a disk, for whoever needs no more than a piece of each at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from insitu.core import bits
from insitu.core.arrays import Array

PIECE, LEAST = 2**20, 2**14
"""Bytes of a block of clients' arrays that are in memory together, and at least of each."""


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

    def pieces(self, most: int) -> Iterator[Array]:
        """All elements in order, flat, ``most`` bytes at a time; an array without any is one piece without any."""
        count, size = prod(self.shape), self._size
        step = max(1, most // size)
        for at in range(0, max(1, count), step):
            n = min(step, count - at)
            raw = self.read(self.first + at * size, n * size)
            yield bits.array(raw, self.dtype, self.kind, (n,), "an array of an update", ours=True)


def together(leaves: Sequence[Stored]) -> Iterator[tuple[int, list[Array]]]:
    """The same piece of each of these arrays of one shape, and the element at which it begins."""
    at, most = 0, max(LEAST, PIECE // len(leaves))
    for pieces in zip(*(leaf.pieces(most) for leaf in leaves), strict=True):
        yield at, list(pieces)
        at += pieces[0].shape[0]
