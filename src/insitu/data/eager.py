"""Clients that are row numbers of arrays, in memory or in files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from insitu.core import tree
from insitu.core.errors import DataError
from insitu.core.types import Client, Data, Schema
from insitu.data import columns
from insitu.data.holdout import Holdout
from insitu.data.mapped import Mapped, blocks, mapped
from insitu.data.reading import AT_ONCE
from insitu.data.rows import Rows, run_of

_BLOCK = 1 << 22
"""Elements of labels looked at in one go."""


class Eager:
    """Arrays, and for each client the numbers of its rows.

    The arrays are kept as they were given, and a client's rows are taken out of them when its examples are looked
    at: so the data are in memory once, plus one client at a time. (Reordering them by client up front would
    hold them twice while the caller keeps the original.) Rows that follow each other are a view, which costs
    nothing; so sorted data are the fastest.

    Arrays in files (memory maps) stay there: a client's rows are read, and checked, when it is asked for.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        parts: Sequence[Any] | None,
        ids: Sequence[str],
        holdout: Holdout,
        schema: Schema | None = None,
    ) -> None:
        names = columns.column_names(x)
        self.x, y = tree.map(mapped, columns.as_x(x)), columns.as_y(y)
        if y is not None:
            y = mapped(y)
        self.out_of_core = any(isinstance(values, Mapped) for values in [*tree.values(self.x), y])
        self.n = columns.length(self.x, y)
        self.ids, self.holdout = ids, holdout
        self._flat, self._starts = _flatten(parts, ids, self.n)
        columns.check_values(*_in_memory(self.x, y), names, self._clients_of)
        self.y = y if isinstance(y, Mapped) else columns.tidy_labels(y)
        self._schema = schema
        self._check_classes()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def count(self, place: int) -> int:
        """The number of the client's examples, those held out included."""
        return int(self._starts[place + 1] - self._starts[place])

    @property
    def examples(self) -> int:
        """How many examples all clients have, those held out included."""
        return len(self._flat)

    def size_at(self, place: int) -> int:
        """How many examples the client learns from."""
        return self.count(place) - self.holdout.count(self.count(place))

    def has_holdout(self) -> bool:
        """Whether any client holds examples out."""
        return self.holdout.count(int(np.diff(self._starts).max())) > 0

    def at(self, place: int) -> Client:
        """The client, its rows taken out of the arrays."""
        learn, held = self._rows(place)
        client = Client(self.ids[place], self._take(learn), None if held is None else self._take(held))
        if self.out_of_core:
            self._check_read(client)
        return client

    @property
    def readers(self) -> int:
        """How many threads read ahead: several where they do little but wait for the disk."""
        return AT_ONCE if any(v.waits for v in [*tree.values(self.x), self.y] if isinstance(v, Mapped)) else 1

    def soon(self, place: int) -> int:
        """The client will be asked for next: what of it lies in files may be fetched meanwhile. Returns its bytes."""
        index = run_of(self._flat[self._starts[place] : self._starts[place + 1]])
        return sum(values.soon(index) for values in [*tree.values(self.x), self.y] if isinstance(values, Mapped))

    def whole(self) -> Data | None:
        """All rows; None where some are in files."""
        return None if self.out_of_core else Data(self.x, self.y)

    def pooled(self, holdout: bool) -> Data | None:
        """All clients' examples of one kind together, in the order of the rows; None where there are none."""
        found = [self._rows(place)[1 if holdout else 0] for place in range(len(self))]
        kept = [rows for rows in found if rows is not None]
        return self._take(np.sort(np.concatenate(kept))) if kept else None

    @cached_property
    def schema(self) -> Schema:
        """What was given; else the shape of an example, and the distinct labels of all rows."""
        if self._schema is not None:
            return self._schema
        shape = None if isinstance(self.x, dict) else self.x.shape[1:]
        if self.y is None or self.y.dtype.kind not in "biuUS":
            return Schema(shape, None)
        return Schema(shape, np.unique(np.concatenate([np.unique(some) for some in blocks(self.y, _BLOCK)])))

    def _check_classes(self) -> None:
        known = None if self._schema is None else self._schema.classes
        if known is None or self.y is None:
            return
        before = 0
        for some in blocks(self.y, _BLOCK):
            strange = ~np.isin(some, known)
            if strange.any():
                row = before + int(np.argwhere(strange)[0, 0])
                raise DataError(
                    f"y holds {columns.shown(some[strange][0])} at row {row}, and the schema has the classes "
                    f"{columns.shown(known[0])} to {columns.shown(known[-1])}: correct one of them"
                )
            before += len(some)

    def _check_read(self, client: Client) -> None:
        """What ``check_values`` does for arrays in memory, for rows that have just been read."""
        for data in (client.data, client.holdout):
            if data is not None:
                columns.check_values(data.x, data.y, None, lambda rows: [client.id] * len(rows), data.rows)

    def _rows(self, place: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Its rows, those that it learns from and those held out."""
        rows = self._flat[self._starts[place] : self._starts[place + 1]]
        learn, held = self.holdout.split(len(rows), self.ids[place])
        return rows[learn], None if held is None else rows[held]

    def _take(self, rows: np.ndarray) -> Data:
        return Rows(self.x, self.y, rows)

    def _clients_of(self, rows: np.ndarray) -> list[str | None]:
        owner = np.full(self.n, -1, dtype=np.int64)
        owner[self._flat] = np.repeat(np.arange(len(self)), np.diff(self._starts))
        return [None if place < 0 else self.ids[place] for place in owner[rows]]


def _flatten(parts: Sequence[Any] | None, ids: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """All parts one after the other, and where each begins. Raises DataError, with the client's name."""
    if parts is None:
        return np.arange(n), np.array([0, n])
    checked = [_rows_of(part, ids[place], n) for place, part in enumerate(parts)]
    flat = np.concatenate(checked)
    starts = np.concatenate([[0], np.cumsum([len(rows) for rows in checked])])
    times = np.bincount(flat, minlength=n)
    if times.max() > 1:
        row = int(np.argmax(times > 1))
        first, second = (np.searchsorted(starts, np.flatnonzero(flat == row)[:2], side="right") - 1).tolist()
        both = f"client {ids[first]!r} twice" if first == second else f"clients {ids[first]!r} and {ids[second]!r}"
        raise DataError(
            f"row {row} belongs to {both} ({int((times > 1).sum())} such rows in all): "
            "give every example to one client only"
        )
    return flat, starts


def _rows_of(part: Any, client: str, n: int) -> np.ndarray:
    rows = np.asarray(part)
    if rows.ndim == 1 and rows.dtype == bool and len(rows) == n:
        rows = np.flatnonzero(rows)
    if rows.size == 0:
        raise DataError(f"client {client!r} has no examples (its part is empty): leave it out, or give it some")
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise DataError(
            f"client {client!r}: its part is {rows.dtype} of shape {rows.shape}: expected row numbers, "
            f"whole numbers [rows], or a mask [{n}]"
        )
    if rows.min() < 0 or rows.max() >= n:
        bad = rows.min() if rows.min() < 0 else rows.max()
        raise DataError(f"client {client!r}: its part holds row {bad}, and there are rows 0 to {n - 1}")
    return rows.astype(np.int64, copy=False)


def _in_memory(x: Any, y: Any) -> tuple[Any, Any]:
    """Those columns that are in memory, in the tree's shape: the others are checked by client."""
    return _pruned(x), None if isinstance(y, Mapped) else y


def _pruned(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _pruned(value) for key, value in x.items()}
    return {} if isinstance(x, Mapped) else x
