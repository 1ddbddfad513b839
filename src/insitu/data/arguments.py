"""Checks of what partitions are given: how many examples, which labels, how many clients."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.errors import DataError, PlanError
from insitu.data.columns import as_array, missing, shown


def as_labels(labels: Any, what: str = "labels") -> np.ndarray:
    """One label an example, [n], of any type that can be sorted, none missing. Raises DataError otherwise."""
    array = as_array(labels, what)
    if array.ndim != 1:
        raise DataError(f"{what} have shape {array.shape}: expected one label an example, [n]")
    absent = missing(array)
    if absent.any():
        row = int(np.argmax(absent))
        raise DataError(
            f"{what} hold {shown(array[row])} at row {row} ({int(absent.sum())} in all): "
            "give every example a label, or leave those rows out"
        )
    return array


def distinct(labels: np.ndarray, what: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    """``(classes, codes)``: the sorted distinct labels and each example's place among them."""
    try:
        return np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise DataError(f"{what} mix types that cannot be sorted ({error}): make them all text") from error


def are_continuous(labels: np.ndarray) -> bool:
    """Whether labels are measures (numbers with a fraction) and not classes."""
    return labels.dtype.kind == "f" and bool((labels != np.rint(labels)).any())


def as_classes(labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """``(classes, codes)`` of labels that are classes. Raises DataError for numbers with a fraction."""
    array = as_labels(labels)
    if are_continuous(array):
        raise DataError(
            f"labels hold numbers with a fraction, such as {array[array != np.rint(array)][0]}, so they are "
            "no classes: cut them into bins first (numpy.digitize), or use shards, iid or quantity_skew"
        )
    return distinct(array)


def number_of_examples(labels_or_n: Any) -> int:
    """n, given as a whole number or by labels [n]."""
    if hasattr(labels_or_n, "__index__") and not getattr(labels_or_n, "ndim", 0):
        return checks.count(n=labels_or_n)
    if isinstance(labels_or_n, (float, str)) or labels_or_n is None:
        raise PlanError(f"Expected labels_or_n={labels_or_n!r} to be labels [n] or a whole number >= 1")
    return len(as_labels(labels_or_n))


def whole(**named: Any) -> int:
    """A whole number, of any sign."""
    ((name, value),) = named.items()
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise PlanError(f"Expected {name}={value!r} to be a whole number")
    return int(value)


def enough(n: int, clients: Any, least: Any) -> tuple[int, int]:
    """``(clients, least)`` as whole numbers. Raises PlanError where n examples are too few for them."""
    clients, least = checks.count(clients=clients), checks.count(least=least)
    if n < clients * least:
        raise PlanError(
            f"Expected clients={clients} times least={least} to be at most the {n} examples there are: "
            f"take at most {n // least} clients" + (" or a smaller least" if least > 1 else "")
        )
    return clients, least
