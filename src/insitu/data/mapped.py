"""Arrays in files: known by where they lie, read by rows, and sent to worker processes by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core.errors import DataError


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
        array = self._array
        if array.flags.c_contiguous and (span := _span(rows, len(self))) is not None:
            # One read is ten times as fast as faulting in its pages, where they are on the disk.
            low, high = span
            each = self.strides[0]
            count, start = (high - low) * each // self.dtype.itemsize, self.offset + low * each
            read = np.fromfile(self.path, self.dtype, count, offset=start)
            read = read.reshape(high - low, *self.shape[1:])
            return read if isinstance(rows, slice) else read[rows - low]
        return np.array(array[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_array"}

    @cached_property
    def _array(self) -> np.ndarray:
        try:
            found = os.path.getsize(self.path)
            if found != self.size:
                raise DataError(
                    f"{self.path} has {found} bytes and had {self.size} when the clients were made: make them again"
                )
            raw = np.memmap(self.path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise DataError(f"{self.path}, in which the clients' data lie, cannot be read: {error.strerror}") from error
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


def _span(rows: Any, n: int) -> tuple[int, int] | None:
    """The first row and the one after the last, where rows are so close together that all between may be read too."""
    if isinstance(rows, slice):
        low, high, step = rows.indices(n)
        return (low, high) if step == 1 and low < high else None
    if not len(rows):
        return None
    low, high = int(rows.min()), int(rows.max()) + 1
    return (low, high) if low >= 0 and high <= n and high - low <= 2 * len(rows) else None


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
