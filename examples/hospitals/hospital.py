"""One hospital's patients, made ready by itself: nothing in here looks at another hospital's file.

What all hospitals have to agree on is written down as the study's protocol (`REFERENCE`, `CODES`), and not computed
over all patients together: nobody could do that without seeing them.
"""

from typing import Any

import numpy as np

from insitu.data import DataSet
from insitu.data.encode import middle, one_hot
from insitu.data.heart import CODES, COLUMNS, FILES, NEVER_ZERO, YES_NO

REFERENCE = {
    "age": (54.0, 9.0), "trestbps": (132.0, 19.0), "chol": (247.0, 58.0), "thalach": (138.0, 26.0),
    "oldpeak": (0.9, 1.1), "ca": (0.7, 0.9),
}  # fmt: skip
"""A usual value and a usual deviation of each measure: they set the scale, and a measure that a hospital never took
counts as usual."""
ALWAYS_KNOWN = ("age", "sex", "cp")


def patients(hospital: str, root: str | None = None) -> DataSet:
    """One of ``cleveland``, ``hungarian``, ``switzerland`` and ``va``: x float64 [n, 32], y 0 (healthy) or 1 (ill).

    What was not measured is the hospital's own median (a usual value where it never measured it), its most frequent
    answer to a yes or no, and none of the codes; a column of its own says for which patients. A blood pressure or
    cholesterol of 0 was not measured. ``root``: the folder that holds ``heart-disease/``.
    """
    lines = FILES.read(f"processed.{hospital}.data", root).decode().split()
    table = np.array([["nan" if cell == "?" else cell for cell in line.split(",")] for line in lines], dtype=np.float64)
    columns: dict[str, np.ndarray] = {}
    unknown: dict[str, np.ndarray] = {}
    for name, values in zip(COLUMNS, table.T[:-1], strict=True):
        if name in NEVER_ZERO:
            values = np.where(values == 0, np.nan, values)
        columns |= column(name, values)
        if name not in ALWAYS_KNOWN:
            unknown[f"{name} missing"] = np.isnan(values).astype(np.float64)
    x = {**columns, **unknown}
    y = np.minimum(table[:, -1], 1).astype(np.int64)
    return DataSet(hospital, np.column_stack(list(x.values())), y, features=tuple(x), classes=("healthy", "ill"))


def column(name: str, values: np.ndarray) -> dict[str, Any]:
    """A measure or an answer as one column, codes as one each."""
    if name in CODES:
        hot, names = one_hot(values, CODES[name], name)
        return dict(zip(names, hot.T, strict=True))
    usual, spread = REFERENCE.get(name, (0.0, 1.0))
    own = middle(values, codes=name in YES_NO)
    filled = np.where(np.isnan(values), usual if np.isnan(own) else own, values)
    return {name: (filled - usual) / spread}
