"""Concat: candidates from all clients side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from insitu.core import tree
from insitu.core.errors import DataError
from insitu.core.mean import Mean
from insitu.core.protocols import Reduce
from insitu.core.types import Context, Total, Update


@dataclass(frozen=True)
class Concat(Reduce):
    """The named parts are concatenated along ``axis`` in the cohort's order; all other parts are averaged.

    For what clients tell that is a list of candidates rather than a number: nearest neighbours, first centres.

    Raises DataError, naming a client, where lists differ in more than their length.
    """

    parts: tuple[str, ...] = ("candidates",)
    axis: int = 0
    needs: ClassVar[Literal["stream", "each"]] = "each"
    gives: ClassVar[str] = "candidates side by side"

    def zero(self) -> dict[str, Any]:
        return {"lists": {}, "clients": {}, "mean": Mean().zero()}

    def add(self, accumulator: dict[str, Any], update: Update, client: str) -> dict[str, Any]:
        rest = {}
        for part, value in update.value.items():
            if part in self.parts:
                accumulator["lists"].setdefault(part, []).append(value)
                accumulator["clients"].setdefault(part, []).append(client)
            else:
                rest[part] = value
        mean = Mean().add(accumulator["mean"], Update(rest, update.weight), client)
        return {**accumulator, "mean": mean}

    def merge(self, accumulator: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        for kept in ("lists", "clients"):
            for part, values in other[kept].items():
                accumulator[kept].setdefault(part, []).extend(values)
        return {**accumulator, "mean": Mean().merge(accumulator["mean"], other["mean"])}

    def finish(self, accumulator: dict[str, Any], context: Context) -> Total:
        total = Mean().finish(accumulator["mean"], context)
        lists = {}
        for part, values in accumulator["lists"].items():
            self._check(part, values, accumulator["clients"][part])
            lists[part] = tree.map(lambda *arrays: np.concatenate(arrays, axis=self.axis), *values)
        return Total({**total.value, **lists}, total.weight, total.clients, total.population)

    def _check(self, part: str, values: list[Any], clients: list[str]) -> None:
        """All clients' lists have the first one's names, and its shape but for the axis along which they are laid."""
        first = {path: self._rest(leaf) for path, leaf in tree.leaves(values[0])}
        for value, client in zip(values, clients, strict=True):
            shapes = {path: self._rest(leaf) for path, leaf in tree.leaves(value)}
            if shapes != first:
                path = next(path for path in {**first, **shapes} if first.get(path) != shapes.get(path))
                raise DataError(
                    f"client {client!r} told {part}/{path} in shape {_shape(value, path)}, client {clients[0]!r} in"
                    f" shape {_shape(values[0], path)}: give every client the same features"
                )

    def _rest(self, leaf: Any) -> tuple[int, ...]:
        shape = list(np.shape(leaf))
        del shape[self.axis]
        return tuple(shape)


def _shape(value: Any, path: str) -> tuple[int, ...] | None:
    return next((np.shape(leaf) for name, leaf in tree.leaves(value) if name == path), None)
