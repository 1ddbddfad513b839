"""One table in a Parquet file, its rows read by client.

Once, at the start, the columns that say whose a row is, what its label is, and those of text are read. The other
columns are read when a client is asked for: only the row groups in which its rows lie, and the last of them is kept, so
that clients that stand beside each other in the file are read together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core.errors import DataError, MissingExtra
from insitu.core.types import Data, Schema
from insitu.data import columns, pages
from insitu.data.arguments import as_labels, distinct
from insitu.data.encode import one_hot
from insitu.data.reading import AT_ONCE, POOL, File, stays_cached

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtra("pyarrow", "parquet", "Clients.from_parquet") from error

BETWEEN = 64 << 10
"""Bytes between two columns that are read with them."""


class Parquet:
    """The rows of a file by client: calling it with a client's key returns its :class:`Data`.

    Plain data but for what is kept of the file, which every process reads for itself.
    """

    def __init__(self, path: Any, by: str, label: str | None, features: Sequence[str] | None) -> None:
        """Reads the columns ``by``, ``label`` and those of text. Raises DataError, naming the column."""
        self.path = os.path.abspath(Path(path))
        table = self._opened()
        self._size = os.path.getsize(self.path)
        arrow = table.schema_arrow
        for what, name in (("by", by), ("label", label), *(("features", name) for name in features or ())):
            if name is not None and name not in arrow.names:
                raise DataError(f"{what}={name!r} is no column of {self.path}: its columns are {arrow.names}")
        self.label, self.by = label, by
        self.features = tuple(features or (name for name in arrow.names if name not in (by, label)))
        if not self.features:
            raise DataError(f"{self.path} has no column to learn from beside by={by!r} and label={label!r}")
        groups = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
        self._ends = np.cumsum([0, *groups])
        if not self._ends[-1]:
            raise DataError(f"{self.path} has no rows: there must be at least one")
        keys, codes = distinct(as_labels(_column(table, by), f"by={by!r}"), f"by={by!r}")
        self.keys = [key.item() if isinstance(key, np.generic) else key for key in keys]
        self._order = np.argsort(codes, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(keys)))])
        self.y = None if label is None else columns.tidy_labels(as_labels(_column(table, label), f"label={label!r}"))
        self._categories = {
            name: _categories(table, name) for name in self.features if _kind(arrow.field(name)) == "text"
        }
        numbers = [_values(arrow.field(name).type).to_pandas_dtype() for name in self.features]
        self._dtype = np.result_type(*(np.float64 if kind in (str, np.object_) else kind for kind in numbers))
        self._forget()

    @property
    def sizes(self) -> np.ndarray:
        """The number of rows by client."""
        return np.diff(self._starts)

    def schema(self) -> Schema:
        """The shape of an example, from the first one; the distinct labels, where they are classes."""
        classes = None if self.y is None or self.y.dtype.kind not in "biuUS" else np.unique(self.y)
        return Schema(self._rows(self._order[:1]).shape[1:], classes)

    def __call__(self, key: Any) -> Data:
        """x [rows, features] and y [rows] of one client. Raises DataError for a missing or infinite value."""
        place = self._places[key]
        rows = self._order[self._starts[place] : self._starts[place + 1]]
        x = self._rows(rows)
        if len(columns.bad_rows(x)):
            names = self._names_of_columns()
            columns.check_values(x, None, names, lambda bad: [str(key)] * len(bad), rows)
        # A value that another client lacks makes a row group of whole numbers one of fractions: not this client's.
        return Data(x.astype(self._dtype, copy=False), None if self.y is None else self.y[rows], rows)

    def soon(self, key: Any) -> int:
        """This client will be asked for next: the disk may fetch its row groups meanwhile. Returns its bytes."""
        place = self._places[key]
        rows = self._order[self._starts[place] : self._starts[place + 1]]
        return sum(self._soon(int(number)) for number in np.unique(self._groups_of(rows)))

    def __getstate__(self) -> dict[str, Any]:
        own = ("_last", "_open", "_lock", "_places", "_leaves", "_raw_columns")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._places = {key: place for place, key in enumerate(self.keys)}
        self._last: tuple[int, np.ndarray] | None = None
        self._open: tuple[Any, File] | None = None
        self._lock = threading.RLock()

    @property
    def readers(self) -> int:
        """How many threads read ahead: several where they do little but wait for the disk.

        One alone where a row group has rows of several clients: it is kept for the next of them, and others would
        throw it away.
        """
        if stays_cached(self._size) < self._size and self._apart():
            with suppress(DataError, OSError):  # asking for a client will say why
                return AT_ONCE if self._raw(0) is not None else 1
        return 1

    def _apart(self) -> bool:
        """Whether every row group is one client's."""
        whose = np.empty(len(self._order), np.int64)
        whose[self._order] = np.repeat(np.arange(len(self.keys)), self.sizes)
        starts = np.unique(self._ends)[:-1]  # a group may have no rows
        return bool((np.minimum.reduceat(whose, starts) == np.maximum.reduceat(whose, starts)).all())

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        groups = self._groups_of(rows)
        found = [self._some(int(i), rows[groups == i] - self._ends[i]) for i in np.unique(groups)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _some(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Some rows of a row group. One that is a client's alone is not kept, and waits for nobody else's."""
        alone = len(rows) == self._ends[number + 1] - self._ends[number] and rows[0] == 0 and _follow(rows)
        if alone and (group := self._raw(number)) is not None:
            return group
        with self._lock:
            return _taken(self._group(number), rows)

    def _groups_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ends, rows, side="right") - 1

    def _group(self, number: int) -> np.ndarray:
        """A row group's features [rows, features], kept until another is asked for."""
        if self._last is None or self._last[0] != number:
            self._last = None
            if (group := self._raw(number)) is None:
                self._soon(number)  # all of it at once: the reader asks for it column by column
                read = self._files()[0].read_row_group(number, columns=list(self.features), use_threads=False)
                group = self._matrix(read)
            self._last = number, group
        return self._last[1]

    def _raw(self, number: int) -> np.ndarray | None:
        """A row group's features [rows, features], where all lie in the file as they do in memory."""
        table, file = self._files()
        rows, group = int(self._ends[number + 1] - self._ends[number]), table.metadata.row_group(number)
        parts = []
        for kind, width, leaf in self._raw_columns:
            chunk, levels = group.column(leaf), pages.levels_of(table.metadata.schema.column(leaf))
            if not pages.as_they_are(chunk, kind, rows * width):
                return None
            parts.append(POOL.empty((rows, width), kind))
            if not pages.numbers(file, chunk, levels, parts[-1]):
                self._raw_columns = []  # the others will be written in the same way: not read in vain as well
                return None
        if not parts:
            return None
        self._widths = [part.shape[1] for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _soon(self, number: int) -> int:
        """Names a row group's columns to the disk, from the first byte to the last where no others lie between."""
        with self._lock:
            table, file = self._files()
            group = table.metadata.row_group(number)
            spans = sorted(_span(group.column(place)) for place in self._leaves)
            joined = [spans[0]]
            for low, high in spans[1:]:
                if low - joined[-1][1] <= BETWEEN:
                    joined[-1] = joined[-1][0], max(high, joined[-1][1])
                else:
                    joined.append((low, high))
            for low, high in joined:
                file.soon(low, high - low)
        return sum(high - low for low, high in joined)

    def _files(self) -> tuple[Any, File]:
        """The table, and the file that it lies in; opened once in each process."""
        with self._lock:
            if self._open is None:
                if os.path.getsize(self.path) != self._size:
                    raise DataError(
                        f"{self.path} is not the file that it was when the clients were made: make them again"
                    )
                opened = self._opened(), File(self.path)
                schema, wanted = opened[0].metadata.schema, set(self.features)
                paths = [schema.column(place).path for place in range(len(schema))]
                self._leaves = [place for place, path in enumerate(paths) if _column_of(path, wanted)]
                self._raw_columns = self._with_one_leaf(opened[0].schema_arrow, paths)
                self._open = opened
            return self._open

    def _with_one_leaf(self, arrow: Any, paths: list[str]) -> list[tuple[np.dtype, int, int]]:
        """The features' dtypes, widths and leaves; none where one may be lists of several lengths, or text."""
        found = []
        for name in self.features:
            kind = arrow.field(name).type
            leaves = [place for place in self._leaves if _column_of(paths[place], {name})]
            one = pa.types.is_fixed_size_list(kind) or _is_number(kind)
            if len(leaves) != 1 or not one or not _is_number(_values(kind)):
                return []
            width = kind.list_size if _is_list(kind) else 1
            found.append((np.dtype(_values(kind).to_pandas_dtype()), width, leaves[0]))
        return found

    def _opened(self) -> Any:
        try:
            return pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read as Parquet: {error}") from error

    def _matrix(self, read: Any) -> np.ndarray:
        parts = []
        for name in self.features:
            values = read.column(name).combine_chunks()
            if name in self._categories:
                part, _ = _encoded(values, self._categories[name], name)
            else:
                part = _numbers(values, name)
            parts.append(part)
        self._widths = [part.shape[1] for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _names_of_columns(self) -> tuple[str, ...]:
        """What the columns of x are called: a number of an example by its place in its list."""
        names: list[str] = []
        for name, width in zip(self.features, self._widths, strict=True):
            if name in self._categories:
                names += one_hot(np.array([], dtype=str), self._categories[name], name)[1]
            else:
                names += [name] if width == 1 else [f"{name}[{i}]" for i in range(width)]
        return tuple(names)


def _taken(group: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A copy of some rows of a row group."""
    if len(rows) and _follow(rows):
        found = POOL.empty((len(rows), *group.shape[1:]), group.dtype)
        found[:] = group[rows[0] : rows[-1] + 1]
        return found
    return group[rows]


def _follow(rows: np.ndarray) -> bool:
    """Whether the rows follow each other."""
    return bool(rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all())


def _span(chunk: Any) -> tuple[int, int]:
    """Where a column's bytes in a row group begin and end."""
    first = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:  # 0 in files of writers who leave it out
        first = min(first, chunk.dictionary_page_offset)
    return first, first + chunk.total_compressed_size


def _column_of(path: str, wanted: set[str]) -> bool:
    """Whether values at a path belong to a wanted column; in a path, what is inside a column follows after a dot."""
    return path in wanted or any(path.startswith(f"{name}.") for name in wanted)


def _kind(field: Any) -> str:
    """What a column holds. Raises DataError for what cannot be learnt from."""
    kind = _values(field.type)
    if _is_text(kind) and not _is_list(field.type):
        return "text"
    if _is_number(kind):
        return "numbers"
    raise DataError(
        f"column {field.name!r} holds {field.type}: expected numbers, lists of numbers of one length, or text;"
        " leave it out with features=[…]"
    )


def _values(kind: Any) -> Any:
    """The type of the values in a column of this type."""
    return kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _column(table: Any, name: str) -> np.ndarray:
    """A whole column in memory [n]."""
    kind = table.schema_arrow.field(name).type
    if _is_list(kind) or not (_is_text(_values(kind)) or _is_number(_values(kind))):
        raise DataError(f"column {name!r} holds {kind}: expected numbers or text")
    groups = range(table.metadata.num_row_groups)
    columns_read = (table.read_row_group(i, columns=[name], use_threads=False).column(0) for i in groups)
    return np.concatenate([column.cast(_values(kind)).to_numpy() for column in columns_read])


def _categories(table: Any, name: str) -> np.ndarray:
    """The sorted distinct values of a column of text, a row group in memory at a time."""
    found: set[str] = set()
    for i in range(table.metadata.num_row_groups):
        found.update(table.read_row_group(i, columns=[name], use_threads=False).column(0).unique().to_pylist())
    return np.array(sorted(found - {None}), dtype=str)


def _encoded(values: Any, categories: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
    if values.null_count:
        raise DataError(f"column {name!r} of text has missing values: give them a category of their own first")
    return one_hot(np.array(values.to_pylist(), dtype=str), categories, name)


def _numbers(values: Any, name: str) -> np.ndarray:
    """[n, k] numbers of a column of numbers (k = 1) or of lists of k numbers; NaN where one is missing."""
    if not _is_list(values.type):
        return values.to_numpy(zero_copy_only=False)[:, None]
    lengths = pc.list_value_length(values)
    if values.null_count or pc.min(lengths) != pc.max(lengths):
        raise DataError(f"column {name!r} holds lists of unequal lengths: make them equally long")
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
