"""How a property of devices (speed, bandwidth) is distributed over clients: a client has the same all through a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core import checks, seeds
from insitu.core.errors import PlanError
from insitu.core.part import Part
from insitu.rounds.world import draws
from insitu.rounds.world.table import Table


class Distribution(Part, ABC):
    """Positive values by client."""

    @abstractmethod
    def of(self, seed: int, name: str, places: np.ndarray) -> np.ndarray:
        """The property ``name`` of the clients at these places [n], each a function of (seed, name, place)."""


@dataclass(frozen=True)
class LogNormal(Distribution):
    r"""\( \text{median} \cdot e^{\sigma z} \) with z standard normal: half of the devices lie above the median.

    sigma   standard deviation of the logarithm: 0 all alike; 0.5: one in twenty is beyond 2.3 times the median;
            1: beyond 5.2 times
    """

    median: float
    sigma: float = 0.5

    def __post_init__(self) -> None:
        checks.positive(median=self.median)
        checks.not_negative(sigma=self.sigma)

    @classmethod
    def part_name(cls) -> str:
        return "log_normal"

    def of(self, seed: int, name: str, places: np.ndarray) -> np.ndarray:
        z = draws.normal(seeds.seed(seed, 0, "", f"device {name}"), places)
        return np.asarray(self.median * np.exp(self.sigma * z))


@dataclass(frozen=True)
class Measured(Distribution):
    """Values measured on real devices: a column of a CSV file, whose rows are given to clients at random.

    path    the file; its first line names the columns
    column  the one to take
    scale   what its values are multiplied by: 125 turns kbit/s into bytes/s

    A client gets one row. So the speed and the links of a client come from the same row, where they are columns of one
    file (or of files with as many rows); where there are more clients than rows, several are alike.

    Raises PlanError, with file and line, for values that are not positive numbers.
    """

    path: Path | str
    column: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        checks.positive(scale=self.scale)
        table = Table.read(self.path, (self.column,))
        values = table.numbers(self.column) * self.scale
        if (wrong := np.flatnonzero(~(values > 0))).size:
            raise PlanError(
                f"{table.where(int(wrong[0]))}: {self.column} is {table.columns[self.column][wrong[0]]}:"
                " expected a number > 0"
            )
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_digest", table.digest)

    def config(self) -> dict[str, Any]:
        return {"name": self.part_name(), "column": self.column, "scale": self.scale, "sha256": vars(self)["_digest"]}

    @classmethod
    def part_name(cls) -> str:
        return "measured"

    def of(self, seed: int, name: str, places: np.ndarray) -> np.ndarray:
        values: np.ndarray = vars(self)["_values"]
        return np.asarray(values[row_of(seed, places, len(values))])


def row_of(seed: int, places: np.ndarray, rows: int) -> np.ndarray:
    """Which of so many recorded devices each client has [n]; the same for every table with as many rows."""
    share = draws.uniform(seeds.seed(seed, 0, "", "recorded device"), places)
    return np.asarray(share * rows, dtype=np.int64)


def values(given: float | Distribution | None, seed: int, name: str, places: np.ndarray) -> np.ndarray:
    """The property by client [n]; infinite where none is given, so that what it limits takes no time."""
    if isinstance(given, Distribution):
        return given.of(seed, name, places)
    return np.full(len(places), np.inf if given is None else float(given))
