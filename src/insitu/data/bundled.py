"""The small data sets that come with scikit-learn: nothing to fetch, good for a first try and for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.data.dataset import DataSet
from insitu.data.encode import standardise

__all__ = ["breast_cancer", "diabetes", "digits", "iris", "wine"]


def digits(*, scale: bool = True) -> DataSet:
    """1,797 handwritten digits of 8×8 pixels, x float64 [n, 64] in [0, 1] (0 to 16 unscaled), y 0 to 9."""
    data = _load("digits")
    return _classes("digits", data, data.data / 16 if scale else data.data)


def iris(*, scale: bool = True) -> DataSet:
    """150 flowers of 3 species, x float64 [n, 4] standardised (or in cm)."""
    data = _load("iris")
    return _classes("iris", data, standardise(data.data) if scale else data.data)


def breast_cancer(*, scale: bool = True) -> DataSet:
    """569 tumours, malignant (0) or benign (1), x float64 [n, 30] standardised (or as measured)."""
    data = _load("breast_cancer")
    return _classes("breast_cancer", data, standardise(data.data) if scale else data.data)


def wine(*, scale: bool = True) -> DataSet:
    """178 wines of 3 growers, x float64 [n, 13] standardised (or as measured)."""
    data = _load("wine")
    return _classes("wine", data, standardise(data.data) if scale else data.data)


def diabetes(*, scale: bool = True) -> DataSet:
    """442 patients, regression of the disease's progress (25 to 346), x float64 [n, 10] standardised."""
    data = _load("diabetes")
    x = standardise(data.data) if scale else data.data
    return DataSet("diabetes", x, data.target.astype(np.float64), features=tuple(data.feature_names))


def _classes(name: str, data: Any, x: np.ndarray) -> DataSet:
    features, classes = tuple(map(str, data.feature_names)), tuple(map(str, data.target_names))
    return DataSet(name, x, data.target.astype(np.int64), features=features, classes=classes)


def _load(name: str) -> Any:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")()
