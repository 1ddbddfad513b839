"""Making columns ready to learn from: fill in what is missing, one column a category, one scale.

Everything here is fitted on the rows it is told (``fit``) and applied to all, so that test rows teach
nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.data.columns import missing


def one_hot(values: Any, categories: Any = None, name: str = "") -> tuple[np.ndarray, list[str]]:
    """``(columns [n, K], names)``: a column of 0 and 1 a category; all 0 where a value is none of them.

    Args:
        values: one value an example, [n]: text or numbers.
        categories: the K values that get a column; the sorted distinct ones by default.
        name: what the columns are named after: ``"name=category"``.
    """
    array = np.asarray(values)
    kinds = np.unique(array[~missing(array)]) if categories is None else np.asarray(categories)
    names = [f"{name}={kind:g}" if isinstance(kind, float) else f"{name}={kind}" for kind in kinds.tolist()]
    return (array[:, None] == kinds[None, :]).astype(np.float64), names


def standardise(x: np.ndarray, fit: np.ndarray | None = None) -> np.ndarray:
    """Columns [n, d] brought to mean 0 and standard deviation 1 over the rows of ``fit`` (x by default).

    NaN stays NaN and is not counted; a column that does not vary becomes 0.
    """
    base = x if fit is None else fit
    spread = np.nanstd(base, axis=0)
    # A constant column's deviation may be rounding dust: dividing by it would make numbers of nothing.
    constant = spread <= 1e-12 * np.abs(np.nanmean(base, axis=0))
    return (x - np.nanmean(base, axis=0)) / np.where(constant | (spread == 0), 1.0, spread)


def middle(values: np.ndarray, codes: bool) -> float:
    """What stands for a missing value: the median, or the most frequent code; NaN where all are missing."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan")
    if not codes:
        return float(np.median(known))
    kinds, counts = np.unique(known, return_counts=True)
    return float(kinds[np.argmax(counts)])


def impute(values: np.ndarray, groups: np.ndarray | None = None, *, codes: bool = False) -> np.ndarray:
    """One column [n] with its NaN filled in by the middle of all rows, or of the rows of the same group.

    Args:
        values: a column of numbers [n], NaN where missing.
        groups: one key an example, [n]; each group fills in its own middle. A group that knows no value at
            all takes the middle of all groups, which is the one number it would have to be told by the
            others.
        codes: whether the numbers are codes of categories: then the most frequent one, in place of the
            median.
    """
    filled = values.astype(np.float64, copy=True)
    everyone = middle(values, codes)
    for group in [None] if groups is None else np.unique(groups):
        rows = np.ones(len(values), dtype=bool) if group is None else groups == group
        own = middle(values[rows], codes)
        filled[rows & np.isnan(values)] = everyone if np.isnan(own) else own
    return filled
