"""What users hand in (arrays, dicts of arrays, frames, tensors, lists) as NumPy, and what is wrong in it.

Nothing is copied that NumPy can share: an array stays the very array, a frame of one dtype its memory. pandas
and torch are never imported here: whoever hands in one of their objects has imported them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from insitu.core import arrays, tree
from insitu.core.errors import DataError

CURE = "fill it in first (the median and an indicator, as insitu.data.heart imputes) or leave those rows out"
_BLOCK = 1 << 22
"""Elements looked at in one go, so that checking a large array needs little memory beside it."""


def as_x(x: Any, what: str = "x") -> Any:
    """Examples as an array of numbers [n, …] or a dict of such arrays. Raises DataError for anything else."""
    if isinstance(x, Mapping):
        if not x:
            raise DataError(f"{what} is an empty dict: give it at least one array [n, …]")
        return {str(key): as_x(value, f"{what}[{key!r}]") for key, value in x.items()}
    array = _frame(x, what) if _is_frame(x) else as_array(x, what)
    if array.dtype.kind in "biuf":
        return array
    return _numbers(array, what)


def as_y(y: Any) -> np.ndarray | None:
    """Labels as an array [n, …] of numbers or text, or None. Raises DataError for a dict."""
    if y is None:
        return None
    if isinstance(y, Mapping):
        raise DataError(f"y is a dict with keys {sorted(map(str, y))}: give labels as one array [n, …]")
    array = _frame(y, "y") if _is_frame(y) else as_array(y, "y")
    if array.dtype.kind not in "biufUSO":
        raise DataError(f"y holds {array.dtype} values: expected numbers or text")
    return array


def as_array(values: Any, what: str) -> np.ndarray:
    """Anything with a length as an array [n, …]; raises DataError where it is not one."""
    if hasattr(values, "tocsr"):
        raise DataError(f"{what} is a sparse matrix of shape {values.shape}: give {what}.toarray()")
    try:
        array = values.to_numpy() if hasattr(values, "to_numpy") else arrays.asnumpy(values)
    except ValueError as error:
        raise DataError(f"{what} is not an array: its rows have unequal lengths ({error})") from error
    if array.ndim == 0:
        raise DataError(f"{what}={values!r:.60} is a {type(values).__name__}: expected an array [n, …]")
    return array


def shown(value: Any) -> str:
    """One element of an array as Python writes it, without NumPy's name around it."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def column_names(x: Any) -> tuple[str, ...] | None:
    """The names of a frame's columns, or None for anything else."""
    return tuple(str(name) for name in x.columns) if _is_frame(x) else None


def length(x: Any, y: np.ndarray | None) -> int:
    """How many examples there are. Raises DataError where columns or labels differ in number or are empty."""
    sizes = {f"x[{path!r}]" if path else "x": len(leaf) for path, leaf in tree.leaves(x)}
    if y is not None:
        sizes["y"] = len(y)
    (first, n), *others = sizes.items()
    for name, size in others:
        if size != n:
            raise DataError(f"{first} has {n} examples and {name} has {size}: they must be equally many")
    if n == 0:
        raise DataError("x has no examples: give it at least one row")
    return n


def missing(values: np.ndarray) -> np.ndarray:
    """A mask of the shape of ``values``: True for NaN, NaT, None and pandas' NA. Inf is not missing."""
    kind = values.dtype.kind
    if kind in "fc":
        return np.isnan(values)
    if kind in "mM":
        return np.isnat(values)
    if kind != "O":
        return np.zeros(values.shape, dtype=bool)
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        return np.asarray(pandas.isna(values))
    flat = [value is None or (isinstance(value, float) and value != value) for value in values.ravel()]
    return np.array(flat, dtype=bool).reshape(values.shape)


def bad_rows(values: np.ndarray) -> np.ndarray:
    """The numbers of the rows that hold a missing or infinite value, ascending; blocks of rows at a time."""
    if values.dtype.kind not in "fcmMO":
        return np.zeros(0, dtype=np.int64)
    step = max(1, _BLOCK // max(1, values[:1].size))
    found = []
    for start in range(0, len(values), step):
        bad = _bad(values[start : start + step])
        if bad.any():
            found.append(start + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def check_values(
    x: Any,
    y: np.ndarray | None,
    names: tuple[str, ...] | None,
    client_of: Callable[[np.ndarray], list[str | None]],
    numbers: np.ndarray | None = None,
) -> None:
    """Raises DataError for the first NaN or Inf that a client owns, naming client, column and row.

    ``client_of(rows)`` gives the client of each row, None for rows that are nobody's: those are let be. ``numbers`` [n]
    is what rows are called, where these are some rows of a larger whole.
    """
    for path, values in [*((f"x/{p}" if p else "x", v) for p, v in tree.leaves(x)), ("y", y)]:
        rows = bad_rows(values) if values is not None else ()
        owners = client_of(rows) if len(rows) else []
        owned = [(row, owner) for row, owner in zip(rows, owners, strict=True) if owner is not None]
        if owned:
            row, owner = owned[0]
            what, where = _cell(values[row], names if path == "x" else None)
            number = row if numbers is None else numbers[row]
            raise DataError(
                f"client {owner!r}: {path} holds {what}{where} at row {number} ({len(owned)} such rows in all): {CURE}"
            )


def tidy_labels(y: np.ndarray | None) -> np.ndarray | None:
    """Labels of Python objects (without missing ones) as an array of text or of numbers."""
    if y is None or y.dtype.kind != "O":
        return y
    if all(isinstance(value, str) for value in y.ravel()):
        return y.astype(str)
    return _numbers(y, "y")


def _is_frame(x: Any) -> bool:
    return hasattr(x, "to_numpy") and hasattr(x, "columns") and hasattr(x, "dtypes")


def _frame(frame: Any, what: str) -> np.ndarray:
    array = frame.to_numpy()
    if array.dtype.kind != "O":
        return array
    for name in frame.columns:
        column = frame[name]
        if getattr(column.dtype, "kind", "O") not in "biuf":
            values = column.dropna().to_numpy()
            try:
                values.astype(np.float64)
            except (TypeError, ValueError):
                raise DataError(_text(f"{what}, column {str(name)!r},", values[0])) from None
    return frame.to_numpy(dtype=np.float64, na_value=np.nan)


def _numbers(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype.kind == "O":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError):
            pass
    culprit = next((v for v in array.ravel() if not _is_number(v)), array.dtype)
    raise DataError(_text(what, culprit))


def _text(what: str, value: Any) -> str:
    return (
        f"{what} holds {shown(value):.60}, which is not a number: encode it first, for example as one "
        "column of 0 and 1 for each of its values (insitu.data.encode.one_hot)"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def _bad(values: np.ndarray) -> np.ndarray:
    return ~np.isfinite(values) if values.dtype.kind in "fc" else missing(values)


def _cell(row: Any, names: tuple[str, ...] | None) -> tuple[str, str]:
    """The bad value in one row as text, and the column it stands in."""
    row = np.asarray(row)
    bad = _bad(row)
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    value = row[place]
    what = "NaN" if bool(missing(np.asarray(value))) else f"{value}"
    if not place:
        return what, ""
    if len(place) > 1:
        return what, f" in element {place}"
    return what, f" in column {names[place[0]]!r}" if names else f" in column {place[0]}"
