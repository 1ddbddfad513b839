"""How unequal clients are: sizes and labels by client, as numbers and as a text table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from insitu.core.errors import DataError
from insitu.data.arguments import are_continuous, as_labels, distinct

_ROWS, _COLUMNS = 12, 12
"""How much of the table is shown as text; the middle is left out beyond that."""


@dataclass(frozen=True, eq=False)
class Summary:
    """Sizes [clients], and where labels are classes: ``classes`` [K] and ``table`` [clients, K] of examples.

    ``str(summary)`` is a table of at most 12 clients and 12 classes.
    """

    ids: Sequence[str]
    sizes: np.ndarray
    classes: np.ndarray | None = None
    table: np.ndarray | None = None

    @property
    def smallest(self) -> int:
        """The number of examples of the smallest client."""
        return int(self.sizes.min())

    @property
    def median(self) -> float:
        """The median number of examples a client."""
        return float(np.median(self.sizes))

    @property
    def largest(self) -> int:
        """The number of examples of the largest client."""
        return int(self.sizes.max())

    @property
    def one_class(self) -> int | None:
        """How many clients hold a single class; None without classes."""
        return None if self.table is None else int(((self.table > 0).sum(axis=1) == 1).sum())

    @property
    def distance(self) -> float | None:
        """Mean over clients of ``½ Σ_k |p_ik − p_k|``, p_i the client's and p the pooled label distribution.

        The total-variation distance: 0 where all clients are alike, near 1 where each holds a rare class of
        its own. None without classes.
        """
        if self.table is None:
            return None
        own = self.table / np.maximum(self.sizes, 1)[:, None]
        pooled = self.table.sum(axis=0) / max(1, self.table.sum())
        return float((np.abs(own - pooled).sum(axis=1) / 2).mean())

    def __str__(self) -> str:
        lines = [f"{len(self.sizes):,} clients, {int(self.sizes.sum()):,} examples"]
        if self.classes is not None:
            lines[0] += f", {len(self.classes):,} classes"
        lines.append(f"examples a client      min {self.smallest:,}   median {self.median:,.0f}   max {self.largest:,}")
        if self.table is not None:
            lines.append(f"clients with one class {self.one_class:,}")
            lines.append(f"distance of labels     {self.distance:.2f}   (0: all alike, 1: nothing in common)")
        return "\n".join([*lines, "", *_lines(self)])


def describe(parts: Sequence[Any], labels: Any | None = None, ids: Sequence[str] | None = None) -> Summary:
    """Sizes and label counts of a partition.

    Args:
        parts: for each client its examples' numbers.
        labels: labels [n]; None, or numbers with a fraction (a regression): sizes only.
        ids: the clients' names; their places 0, 1, … by default.

    Raises:
        DataError: an example's number is not one of the labels', or labels are not [n] or missing.
    """
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    if not len(sizes):
        raise DataError("parts is empty: give at least one client")
    names = ids if ids is not None else [str(place) for place in range(len(sizes))]
    array = None if labels is None else as_labels(labels)
    if array is None or are_continuous(array):
        return Summary(names, sizes)
    flat = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
    if len(flat) and not 0 <= flat.min() <= flat.max() < len(array):
        raise DataError(
            f"parts hold example {flat.min() if flat.min() < 0 else flat.max()}, and there are "
            f"labels for 0 to {len(array) - 1}: give the labels that the partition was made from"
        )
    return Summary(names, sizes, *tabulate(np.repeat(np.arange(len(sizes)), sizes), array[flat], len(sizes)))


def tabulate(owners: np.ndarray, labels: np.ndarray, clients: int) -> tuple[np.ndarray, np.ndarray]:
    """``(classes [K], table [clients, K])``; ``owners[j]`` is the client of the example of ``labels[j]``."""
    classes, codes = distinct(labels)
    counts = np.bincount(owners * len(classes) + codes, minlength=clients * len(classes))
    return classes, counts.reshape(clients, len(classes))


def _lines(summary: Summary) -> list[str]:
    """The table as aligned lines: names to the left, numbers to the right."""
    rows = [["client", "examples", *_header(summary)]]
    for place in _shown(len(summary.sizes), _ROWS):
        if place is None:
            rows.append(["…"] + [""] * (len(rows[0]) - 1))
        else:
            rows.append([_short(summary.ids[place], 24), f"{summary.sizes[place]:,}", *_counts(summary, place)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = [
        row[0].ljust(widths[0]) + "".join("  " + t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return [line.rstrip() for line in aligned]


def _header(summary: Summary) -> list[str]:
    if summary.classes is None:
        return []
    places = _shown(len(summary.classes), _COLUMNS)
    return ["…" if place is None else _short(str(summary.classes[place]), 10) for place in places]


def _counts(summary: Summary, client: int) -> list[str]:
    if summary.table is None:
        return []
    row = summary.table[client]
    places = _shown(len(row), _COLUMNS)
    # A dot for none keeps the classes that a client does have easy to see.
    return ["" if place is None else (f"{row[place]:,}" if row[place] else "·") for place in places]


def _shown(n: int, most: int) -> list[int | None]:
    """The places shown out of n: all, or the first and last ones around None."""
    if n <= most:
        return list(range(n))
    return [*range(most // 2), None, *range(n - (most - 1) // 2, n)]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
