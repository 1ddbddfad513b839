"""Adult (census income): who earns over 50,000 dollars a year? Clients by occupation or kind of employer."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.data.dataset import DataSet
from insitu.data.encode import one_hot as one_column_each
from insitu.data.encode import standardise
from insitu.data.files import Files

FILES = Files(
    "adult",
    "https://archive.ics.uci.edu/dataset/2/adult",
    {
        "adult.data.gz": "c7a2b4716a97f930123e0baf879188d701e798172631a654fc703d4b082907f3",
        "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        "adult.test.gz": "8a2c1bffa6e7ce5abfa43881ae5e87c4311ebc2b3cd526c9c40a43f19f06f799",
        "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    },
)
COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation",
    "relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country",
)  # fmt: skip
MEASURES = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
UNKNOWN = "?"


def adult(
    root: Any = None,
    *,
    key: str = "occupation",
    missing: str = "category",
    one_hot: bool = True,
    scale: bool = True,
) -> DataSet:
    """A US census extract of 1994; natural clients by occupation (14, of 9 to 4,140 people) or workclass.

    Args:
        root: the folder that holds ``adult/``; see :mod:`insitu.data.files`.
        key: ``occupation`` or ``workclass``: what makes a client.
        missing: ``category``: not known (``?``) is a category of its own, and a client ``?`` where the key is
            not known; ``drop``: leaves those rows out (2,399 of the training part).
        one_hot: one column of 0 and 1 for each category of the training part; False: the category's place
            among the sorted ones, -1 for one that the training part lacks.
        scale: measures to mean 0 and standard deviation 1 over the training part.

    Returns:
        x float64 [32561, d], y int64 [n] (1: over 50,000), keys text; the test part of 16,281 people
        likewise.

    Raises:
        DataError: a file is absent or damaged.
        PlanError: an option is not one of those above.

    Source: Becker and Kohavi (1996), UCI, from the Census Bureau's database of 1994.
    """
    checks.one_of(("occupation", "workclass"), key=key)
    checks.one_of(("category", "drop"), missing=missing)
    train, test = (_rows(FILES.read(f"adult.{part}.gz", root), missing) for part in ("data", "test"))
    names, x, x_test = [], [], []
    for place, name in enumerate(COLUMNS):
        own, fit, new = _columns(name, train[:, place], test[:, place], one_hot, scale)
        names += own
        x.append(fit)
        x_test.append(new)
    key_at = COLUMNS.index(key)
    return DataSet(
        "adult",
        np.hstack(x),
        (train[:, -1] == ">50K").astype(np.int64),
        train[:, key_at],
        np.hstack(x_test),
        (test[:, -1] == ">50K").astype(np.int64),
        test[:, key_at],
        features=tuple(names),
        classes=("<=50K", ">50K"),
    )


def _rows(content: bytes, missing: str) -> np.ndarray:
    """The cells as text [n, 15]. The test file begins with a comment, and its labels end in a full stop."""
    lines = [line for line in content.decode().splitlines() if line and not line.startswith("|")]
    cells = np.array([line.rstrip(".").split(", ") for line in lines])
    return cells[~(cells == UNKNOWN).any(axis=1)] if missing == "drop" else cells


def _columns(
    name: str, train: np.ndarray, test: np.ndarray, one_hot: bool, scale: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """One column of the file as columns of numbers: their names, the training part, the test part."""
    if name in MEASURES:
        fit, new = train.astype(np.float64)[:, None], test.astype(np.float64)[:, None]
        return ([name], standardise(fit), standardise(new, fit)) if scale else ([name], fit, new)
    kinds = np.unique(train)
    if one_hot:
        fit, names = one_column_each(train, kinds, name)
        return names, fit, one_column_each(test, kinds, name)[0]
    return [name], _places(train, kinds), _places(test, kinds)


def _places(values: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(kinds, values), len(kinds) - 1)
    return np.where(kinds[places] == values, places, -1).astype(np.float64)[:, None]
