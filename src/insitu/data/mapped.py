"""Arrays in files: known by where they lie, read by rows, and sent to worker processes by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core.errors import DataError
from insitu.data.reading import POOL, File, stays_cached

GAP = 16 << 10
"""Bytes between two rows that are read with them: about as long as asking the disk once more would take."""
STRETCH = 8 << 20
"""Bytes from which rows that lie together are read in several pieces, so that what lies between takes little memory."""


@dataclass(frozen=True)
class Mapped:
    """An array [n, …] in a file. ``mapped[rows]`` reads these rows into memory; nothing else does.

    offset   bytes from the file's start to the first element
    strides  bytes from one element to the next along each axis, as NumPy counts them
    size     the file's, in bytes: one that has since been cut off or replaced is not read as if it were the same
    """

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    size: int

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """These rows, copied into memory: what is learnt from later must not wait for the disk."""
        if not self._each or (wanted := _numbers(rows, len(self))) is None:
            return np.array(self._array[rows])
        if isinstance(rows, slice):
            return self._read(*wanted)
        found = POOL.empty((len(rows), *self.shape[1:]), self.dtype)
        runs = self._runs(rows)
        if len(runs) > 1:
            self.soon(rows)
        for low, high, places in runs:
            found[places] = self._read(low, high)[rows[places] - low]
        return found

    @property
    def waits(self) -> bool:
        """Whether some of it is read past the page cache, so that a read takes as long as the disk does."""
        return stays_cached(self.size) < self.size

    def soon(self, rows: Any) -> int:
        """These rows will be asked for next. Returns how many bytes they are."""
        if not self._each or (wanted := _numbers(rows, len(self))) is None:
            return 0
        runs = [(*wanted, None)] if isinstance(rows, slice) else self._runs(rows)
        for low, high, _ in runs:
            self._file.soon(self.offset + low * self._each, (high - low) * self._each)
        return sum(high - low for low, high, _ in runs) * self._each

    @cached_property
    def _each(self) -> int:
        """Bytes from one row to the next, where a row's lie together and rows one behind the other; else 0."""
        dense = self.dtype.itemsize * np.cumprod([1, *self.shape[:0:-1]])[::-1]
        alike = all(a == b for a, b, n in zip(dense, self.strides, self.shape, strict=True) if n > 1)
        return int(dense[0]) if alike else 0

    def _runs(self, rows: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
        """Rows that lie close together: the first, the one after the last, and the places of all in ``rows``."""
        order = np.argsort(rows, kind="stable")
        ascending, each = rows[order], self._each
        apart = np.diff(ascending) * each > GAP + each
        piece = np.diff(ascending * each // STRETCH) > 0
        parts = np.split(order, np.flatnonzero(apart | piece) + 1)
        return [(int(rows[part[0]]), int(rows[part[-1]]) + 1, part) for part in parts if len(part)]

    def _read(self, low: int, high: int) -> np.ndarray:
        try:
            return self._file.array(self.offset + low * self._each, (high - low, *self.shape[1:]), self.dtype)
        except OSError as error:
            raise DataError(f"{self.path}, in which the clients' data lie, cannot be read: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_array", "_file", "_each")}

    @cached_property
    def _file(self) -> File:
        """The file, looked at once: it must be the one that it was."""
        try:
            file = File(self.path)
        except OSError as error:
            raise DataError(f"{self.path}, in which the clients' data lie, cannot be read: {error.strerror}") from error
        if file.size != self.size:
            raise DataError(
                f"{self.path} has {file.size} bytes and had {self.size} when the clients were made: make them again"
            )
        return file

    @cached_property
    def _array(self) -> np.ndarray:
        """For rows whose bytes lie apart (columns one after the other): a memory map, read a page at a time."""
        assert self._file.size == self.size
        raw = np.memmap(self.path, dtype=np.uint8, mode="r")
        return np.ndarray(self.shape, self.dtype, raw, self.offset, self.strides)


def mapped(array: np.ndarray) -> np.ndarray | Mapped:
    """The place in a file of an array that lies in one; any other array as it is.

    A memory map in mode ``"c"`` may differ from its file, and one of an unnamed file cannot be opened again: those
    stay arrays like any other.
    """
    root = _root(array)
    if root is None or root.mode not in ("r", "r+", "w+") or root.filename is None or not array.size:
        return array
    if root.mode != "r":
        root.flush()
    path = os.path.abspath(root.filename)
    if not os.path.isfile(path):
        return array
    offset = root.offset + _address(array) - _address(root)
    return Mapped(path, array.dtype, array.shape, array.strides, offset, os.path.getsize(path))


def opened(path: Any, what: str) -> np.ndarray:
    """A ``.npy`` file as a memory map. Raises DataError where it is none."""
    try:
        array = np.load(Path(path), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{what}: {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(
            f"{what}: {path} holds no array that can be mapped ({error}): write one of numbers with numpy.save"
        ) from error
    if not isinstance(array, np.memmap):
        raise DataError(f"{what}: {path} is not a .npy file of one array: write it with numpy.save, not numpy.savez")
    return array


def blocks(values: np.ndarray | Mapped, elements: int) -> Any:
    """The array piece by piece, each of about so many elements, in memory one at a time."""
    step = max(1, elements // max(1, int(np.prod(values.shape[1:]))))
    return (np.asarray(values[start : start + step]) for start in range(0, len(values), step))


def _numbers(rows: Any, n: int) -> tuple[int, int] | None:
    """The first row and the one after the last; None for what is no slice without steps and no row numbers of these."""
    if isinstance(rows, slice):
        low, high, step = rows.indices(n)
        return (low, high) if step == 1 and low < high else None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu" or rows.ndim != 1 or not len(rows):
        return None
    low, high = int(rows.min()), int(rows.max()) + 1
    return (low, high) if low >= 0 and high <= n else None


def _root(array: np.ndarray) -> np.memmap | None:
    """The memory map that an array is a view of: the outermost, whose offset is that of the file."""
    found, base = None, array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            found = base
        base = base.base
    return found


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
