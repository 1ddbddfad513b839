"""Heart disease at four hospitals: 920 patients, many values missing, and not the same ones everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.data.dataset import DataSet
from insitu.data.encode import impute as fill
from insitu.data.encode import one_hot as one_column_each
from insitu.data.encode import standardise
from insitu.data.files import Files

FILES = Files(
    "heart-disease",
    "https://archive.ics.uci.edu/dataset/45/heart+disease",
    {
        "processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
        "processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
        "processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
        "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
    },
)
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope",
    "ca", "thal",
)  # fmt: skip
YES_NO = ("sex", "fbs", "exang")
CODES = {
    "cp": (1.0, 2.0, 3.0, 4.0),
    "restecg": (0.0, 1.0, 2.0),
    "slope": (1.0, 2.0, 3.0),
    "thal": (3.0, 6.0, 7.0),
}
NEVER_ZERO = ("trestbps", "chol")
"""A blood pressure or cholesterol of 0 was not measured."""


def heart(
    root: Any = None,
    *,
    target: str = "disease",
    rows: str = "all",
    impute: str | None = "client",
    indicators: bool = True,
    one_hot: bool = True,
    scale: bool = True,
) -> DataSet:
    """Four hospitals as natural clients (303, 294, 123 and 200 patients), 13 measures and codes.

    Missing values (``?``, and a ``trestbps`` or ``chol`` of 0) become NaN and then, unless ``impute=None``,
    the median (for codes: the most frequent value).

    Args:
        root: the folder that holds ``heart-disease/``; see :mod:`insitu.data.files`.
        target: ``disease``: 0 or 1; ``severity``: 0 to 4.
        rows: ``all`` 920 patients; ``complete``: FLamby's 740: without slope, ca and thal, then without rows
            that lack a value, a chol of 0 counting as a value.
        impute: ``client``: by each hospital's own median (a hospital that never measured a column takes the
            median of all, which would have to be told it); ``global``: by the median of all; None: NaN stays,
            which :class:`insitu.data.Clients` refuses: impute first.
        indicators: a further column of 0 and 1, ``chol missing``, for each column with missing values.
        one_hot: cp, restecg, slope and thal as one column of 0 and 1 a code.
        scale: measures to mean 0 and standard deviation 1 over all hospitals together.

    Returns:
        x float64 [n, d], y int64 [n], keys text [n] (cleveland, hungarian, switzerland, va), no test part.

    Raises:
        DataError: a file is absent or damaged.
        PlanError: an option is not one of those above.

    Source: Janosi, Steinbrunn, Pfisterer and Detrano (1988), UCI, CC BY 4.0. FLamby: Ogier du Terrail et al.
    (2022).
    """
    checks.one_of(("disease", "severity"), target=target)
    checks.one_of(("all", "complete"), rows=rows)
    checks.one_of(("client", "global", None), impute=impute)
    if impute is None and one_hot and rows == "all":
        raise PlanError("Expected impute=None with one_hot=False: codes that are missing have no column of their own")
    table, keys = _read(root)
    y = table[:, -1].astype(np.int64)
    x = dict(zip(COLUMNS, table.T[:-1], strict=True))
    if rows == "complete":
        x = {name: x[name] for name in COLUMNS if name not in ("slope", "ca", "thal")}
        whole = ~np.isnan(np.column_stack(list(x.values()))).any(axis=1)
        x, y, keys = {name: column[whole] for name, column in x.items()}, y[whole], keys[whole]
    else:
        for name in NEVER_ZERO:
            x[name] = np.where(x[name] == 0, np.nan, x[name])
    absent = {name: np.isnan(column) for name, column in x.items() if np.isnan(column).any()}
    if impute is not None:
        groups = keys if impute == "client" else None
        x = {name: fill(v, groups, codes=name in CODES or name in YES_NO) for name, v in x.items()}
    columns = _encode(x, one_hot, scale)
    if indicators:
        columns |= {f"{name} missing": mask.astype(np.float64) for name, mask in absent.items()}
    y, classes = (np.minimum(y, 1), ("healthy", "ill")) if target == "disease" else (y, tuple("01234"))
    return DataSet("heart", np.column_stack(list(columns.values())), y, keys, features=tuple(columns), classes=classes)


def _read(root: Any) -> tuple[np.ndarray, np.ndarray]:
    """All hospitals' rows [920, 14], NaN where a file has ``?``, and the hospital of each."""
    tables = []
    for hospital in HOSPITALS:
        lines = FILES.read(f"processed.{hospital}.data", root).decode().split()
        cells = [["nan" if cell == "?" else cell for cell in line.split(",")] for line in lines]
        tables.append(np.array(cells, dtype=np.float64))
    return np.concatenate(tables), np.repeat(HOSPITALS, [len(table) for table in tables])


def _encode(x: dict[str, np.ndarray], one_hot: bool, scale: bool) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name, values in x.items():
        if name in CODES and one_hot:
            hot, names = one_column_each(values, CODES[name], name)
            columns |= dict(zip(names, hot.T, strict=True))
        elif scale and name not in CODES and name not in YES_NO:
            columns[name] = standardise(values[:, None])[:, 0]
        else:
            columns[name] = values
    return columns
