"""What every reader returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from insitu.core.errors import DataError
from insitu.core.types import Schema
from insitu.data.clients import Clients


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in memory; the same names whatever the reader.

    name      the reader's name
    x, y      examples [n, …] and labels [n, …]: the training part where there is a test part
    keys      the natural client of each example [n] (writer, hospital, person), or None where there is none
    x_test, y_test, keys_test   the test part, or None
    features  the names of x's columns, or () where they have none (pixels, characters)
    classes   the names of the labels 0, 1, …; () for a regression
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    keys: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    keys_test: np.ndarray | None = None
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def clients(self, parts: Sequence[Any] | None = None, *, holdout: float = 0.0, seed: int = 0) -> Clients:
        """The training part as clients: the natural ones, or those of a partition.

        Args:
            parts: for each client its row numbers; None: one client a distinct key.
            holdout, seed: as in :meth:`Clients.from_arrays`.

        Raises:
            DataError: no parts are given and there are no natural clients; or as in
            :meth:`Clients.from_arrays`.
        """
        # All classes that there are: a rare one may occur in the test part only.
        known = Schema(self.x.shape[1:], np.arange(len(self.classes))) if self.classes else None
        if parts is not None:
            return Clients.from_arrays(self.x, self.y, parts, holdout=holdout, schema=known, seed=seed)
        if self.keys is None:
            raise DataError(
                f"data set {self.name!r} has no natural clients: give a partition, for example "
                "parts=dirichlet(data.y, 10) from insitu.data.partition"
            )
        return Clients.by_key(self.x, self.y, self.keys, holdout=holdout, schema=known, seed=seed)

    def __repr__(self) -> str:
        parts = [f"x {self.x.dtype} {list(self.x.shape)}", f"y {self.y.dtype} {list(self.y.shape)}"]
        if self.keys is not None:
            parts.append(f"{len(np.unique(self.keys)):,} natural clients")
        if self.x_test is not None:
            parts.append(f"{len(self.x_test):,} test examples")
        return f"DataSet({self.name!r}, {', '.join(parts)})"
