"""Copies: no server; every node's own word, and with which weight each neighbour hears it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from insitu.core import checks
from insitu.core.protocols import Reduce
from insitu.core.types import Context, Total, Update
from insitu.reduce.neighbours import TOPOLOGIES, Neighbours, mixing


@dataclass(frozen=True)
class Copies(Reduce):
    """For methods in which everybody keeps a copy of what its neighbours have told so far.

    ``Total.value = {node: {"shared": its own, "heard": {neighbour: weight}, …}}``: ``shared`` is the node's word as it
    was told, ``heard`` its row of mixing weights over those that told something, itself included; other parts are mixed
    as :class:`~insitu.reduce.neighbours.Neighbours` does. The share of a node that failed falls to those who would have
    heard it.
    """

    topology: str = "ring"
    needs: ClassVar[Literal["stream", "each"]] = "each"
    gives: ClassVar[str] = "each node's word and who hears it"

    def __post_init__(self) -> None:
        checks.one_of(tuple(TOPOLOGIES), topology=self.topology)

    def zero(self) -> dict[str, Any]:
        return Neighbours(self.topology).zero()

    def add(self, accumulator: dict[str, Any], update: Update, client: str) -> dict[str, Any]:
        return Neighbours(self.topology).add(accumulator, update, client)

    def merge(self, accumulator: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        return Neighbours(self.topology).merge(accumulator, other)

    def finish(self, accumulator: dict[str, Any], context: Context) -> Total:
        rest = {node: {p: x for p, x in told.items() if p != "shared"} for node, told in accumulator.items()}
        mixed = Neighbours(self.topology).finish(rest, context)
        cohort = list(context.cohort)
        value = {}
        for i, row in enumerate(mixing(self.topology, len(cohort))):
            node = cohort[i]
            if node not in accumulator:
                continue
            heard = {cohort[j]: weight for j, weight in row.items() if cohort[j] in accumulator}
            heard[node] = heard.get(node, 0.0) + 1 - sum(heard.values())
            word = {"shared": accumulator[node]["shared"]} if "shared" in accumulator[node] else {}
            value[node] = {**mixed.value[node], **word, "heard": heard}
        return Total(value, {}, mixed.clients, mixed.population)
