"""Natural clients: examples that share a key (a writer, a hospital, a person) belong together."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.errors import DataError
from insitu.data.arguments import as_labels, distinct
from insitu.data.shares import by_owner


def by_key(keys: Any, least: int = 1) -> list[np.ndarray]:
    """One client a distinct key, in the order of the sorted keys (``numpy.unique(keys)``).

    Args:
        keys: one key an example, [n]: whole numbers or text.
        least: how many examples every client must have.

    Returns:
        For each client its examples' numbers, int64, ascending.

    Raises:
        DataError: keys are not [n], or missing, or one of them has fewer than ``least`` examples.
    """
    least = checks.count(least=least)
    values, codes = distinct(as_labels(keys, "keys"), "keys")
    sizes = np.bincount(codes, minlength=len(values))
    if len(sizes) and sizes.min() < least:
        place = int(sizes.argmin())
        raise DataError(
            f"key {str(values[place])!r} has {sizes[place]} examples, fewer than least={least} "
            f"({int((sizes < least).sum())} such keys in all): leave their examples out, or lower least"
        )
    return by_owner(np.arange(len(codes)), codes, len(values))
