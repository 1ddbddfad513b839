"""Some rows of arrays that others hold, taken out when they are looked at."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from insitu.core import tree
from insitu.core.types import Data


class Rows(Data):
    """Examples that are rows of larger arrays. Rows that follow each other are a view, others a copy, made once."""

    _from: tuple[Any, Any]

    def __init__(self, x: Any, y: Any, rows: np.ndarray) -> None:
        """x, y: the larger arrays (or trees of them), y may be None; rows [n]: which of theirs."""
        self.__dict__.update(rows=rows, _from=(x, y))

    @cached_property
    def x(self) -> Any:  # type: ignore[override]
        """[n, …], or a dict of such arrays."""
        return tree.map(lambda column: column[self._index], self._from[0])

    @cached_property
    def y(self) -> Any:  # type: ignore[override]
        """[n, …] or None."""
        return None if self._from[1] is None else self._from[1][self._index]

    def __len__(self) -> int:
        return len(self.__dict__["rows"])

    def take(self, index: Any) -> Data:
        return Rows(*self._from, self.__dict__["rows"][index])

    def __reduce__(self) -> Any:
        # What is sent elsewhere is these rows, not all that they were taken from.
        return Data, (self.x, self.y, self.rows)

    @cached_property
    def _index(self) -> Any:
        return run_of(self.__dict__["rows"])


def run_of(rows: np.ndarray) -> Any:
    """The rows, as a slice where they follow each other."""
    if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
