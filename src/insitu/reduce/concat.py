"""Concat: candidates from all clients side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from insitu.core import tree
from insitu.core.mean import Mean
from insitu.core.protocols import Reduce
from insitu.core.types import Context, Total, Update


@dataclass(frozen=True)
class Concat(Reduce):
    """The named parts are concatenated along ``axis`` in the cohort's order; all other parts are averaged.

    For what clients tell that is a list of candidates rather than a number: nearest neighbours, first centres.
    """

    parts: tuple[str, ...] = ("candidates",)
    axis: int = 0
    needs: ClassVar[Literal["stream", "each"]] = "each"

    def zero(self) -> dict[str, Any]:
        return {"lists": {}, "mean": Mean().zero()}

    def add(self, accumulator: dict[str, Any], update: Update, client: str) -> dict[str, Any]:
        rest = {}
        for part, value in update.value.items():
            if part in self.parts:
                accumulator["lists"].setdefault(part, []).append(value)
            else:
                rest[part] = value
        mean = Mean().add(accumulator["mean"], Update(rest, update.weight), client)
        return {**accumulator, "mean": mean}

    def merge(self, accumulator: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        for part, values in other["lists"].items():
            accumulator["lists"].setdefault(part, []).extend(values)
        return {**accumulator, "mean": Mean().merge(accumulator["mean"], other["mean"])}

    def finish(self, accumulator: dict[str, Any], context: Context) -> Total:
        total = Mean().finish(accumulator["mean"], context)
        lists = {
            part: tree.map(lambda *arrays: np.concatenate(arrays, axis=self.axis), *values)
            for part, values in accumulator["lists"].items()
        }
        return Total({**total.value, **lists}, total.weight, total.clients, total.population)
