"""Parkinson's telemonitoring: 42 people, 5,875 voice recordings, regression of the clinical score."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.data.dataset import DataSet
from insitu.data.encode import standardise
from insitu.data.files import Files

FILES = Files(
    "parkinsons-telemonitoring",
    "https://archive.ics.uci.edu/dataset/189/parkinsons+telemonitoring",
    {"parkinsons_updrs.data": "f2c7d5025dec4e92e7feae367a5f7ccf58789a10ac6b54bdf15976c599f9dd39"},
)
TARGETS = ("motor_UPDRS", "total_UPDRS")


def parkinsons(root: Any = None, *, target: str = "motor_UPDRS", scale: bool = True) -> DataSet:
    """The natural client is the person: 42 of them, 101 to 168 recordings each; their scores differ strongly.

    Args:
        root: the folder that holds ``parkinsons-telemonitoring/``; see :mod:`insitu.data.files`.
        target: ``motor_UPDRS`` (5 to 40 points), ``total_UPDRS`` (7 to 55 points), or ``both``: y [n, 2].
        scale: x to mean 0 and standard deviation 1 over all people together; y stays in points.

    Returns:
        x float64 [5875, 19] (age, sex, test_time in days, 16 voice measures), y float64, keys int64 1 to 42.

    Raises:
        DataError: the file is absent or damaged.
        PlanError: target is none of those above.

    Source: Tsanas, Little, McSharry and Ramig (2010), "Accurate telemonitoring of Parkinson's disease
    progression by noninvasive speech tests", IEEE Transactions on Biomedical Engineering 57; UCI.
    """
    checks.one_of((*TARGETS, "both"), target=target)
    header, *lines = FILES.read("parkinsons_updrs.data", root).decode().split()
    names = header.split(",")
    table = np.array([line.split(",") for line in lines], dtype=np.float64)
    wanted = [names.index(name) for name in (TARGETS if target == "both" else (target,))]
    inputs = [place for place, name in enumerate(names) if name not in ("subject#", *TARGETS)]
    x, y = table[:, inputs], table[:, wanted]
    return DataSet(
        "parkinsons",
        standardise(x) if scale else x,
        y if target == "both" else y[:, 0],
        table[:, names.index("subject#")].astype(np.int64),
        features=tuple(names[place] for place in inputs),
    )
