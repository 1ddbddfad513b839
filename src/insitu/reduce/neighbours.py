"""Neighbours: no server; every node takes a mean over itself and its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal

from insitu.core import arrays, checks, seeds, tree
from insitu.core.protocols import Reduce
from insitu.core.types import Context, Total, Update

Edges = list[set[int]]
"""For each of n nodes, the places of its neighbours; symmetric, without the node itself."""


def ring(n: int) -> Edges:
    """Each node has the one before and the one after it."""
    return [{(i - 1) % n, (i + 1) % n} - {i} for i in range(n)]


def grid(n: int) -> Edges:
    """The squarest grid of n nodes without wrapping; the last row may be short."""
    columns = math.ceil(math.sqrt(n))
    edges: Edges = [set() for _ in range(n)]
    for i in range(n):
        right, below = i + 1, i + columns
        for j in ([right] if right % columns and right < n else []) + ([below] if below < n else []):
            edges[i].add(j)
            edges[j].add(i)
    return edges


def exponential(n: int) -> Edges:
    """Each node has those 1, 2, 4, … places away on a ring, both ways (Assran et al. 2019, made symmetric)."""
    hops = [2**p for p in range(max(1, math.ceil(math.log2(max(n, 2)))))]
    return [({(i + h) % n for h in hops} | {(i - h) % n for h in hops}) - {i} for i in range(n)]


def complete(n: int) -> Edges:
    """Everybody knows everybody: gossip becomes an all-reduce."""
    return [set(range(n)) - {i} for i in range(n)]


TOPOLOGIES: dict[str, Callable[[int], Edges]] = {
    "ring": ring,
    "grid": grid,
    "exponential": exponential,
    "complete": complete,
}


def pairs(n: int, seed: int, round: int) -> Edges:
    """A matching drawn for the round: everybody has one neighbour, but for one where n is odd (Boyd et al. 2006)."""
    order = seeds.generator(seed, round, "", "pairs").permutation(n).tolist()
    edges: Edges = [set() for _ in range(n)]
    for i, j in zip(order[0::2], order[1::2], strict=False):
        edges[i].add(j)
        edges[j].add(i)
    return edges


DRAWN: dict[str, Callable[[int, int, int], Edges]] = {"pairs": pairs}
"""Topologies that are another graph in every round: functions of (n, run seed, round)."""


def edges_of(topology: str, n: int, seed: int = 0, round: int = 1) -> Edges:
    """The round's edges in a topology of either kind."""
    return TOPOLOGIES[topology](n) if topology in TOPOLOGIES else DRAWN[topology](n, seed, round)


def mixing(topology: str, n: int, seed: int = 0, round: int = 1) -> list[dict[int, float]]:
    r"""Metropolis–Hastings weights: symmetric, every row sums to one, so that mixing keeps the mean over nodes.

    .. math:: W_{ij} = \frac{1}{1 + \max(d_i, d_j)}, \qquad W_{ii} = 1 - \sum_{j \ne i} W_{ij}

    Xiao, Boyd and Kim 2007. Row i is a dict {j: W_ij} in the order of j. ``seed`` and ``round`` matter to topologies
    that are drawn anew in every round.
    """
    edges = [neighbours - {i} for i, neighbours in enumerate(edges_of(topology, n, seed, round))]
    rows = []
    for i, neighbours in enumerate(edges):
        row = {j: 1 / (1 + max(len(neighbours), len(edges[j]))) for j in neighbours}
        row[i] = 1 - sum(row.values())
        rows.append(dict(sorted(row.items())))
    return rows


@dataclass(frozen=True)
class Neighbours(Reduce):
    """One total a node: ``Total.value = {node: {part: mixed}}``, over the round's cohort in the given topology.

    Nodes that failed this round are left out: what their neighbours would have given them, these keep themselves.
    """

    topology: str = "ring"
    needs: ClassVar[Literal["stream", "each"]] = "each"
    gives: ClassVar[str] = "a total a node"

    def __post_init__(self) -> None:
        checks.one_of((*TOPOLOGIES, *DRAWN), topology=self.topology)

    def zero(self) -> dict[str, Any]:
        return {}

    def add(self, accumulator: dict[str, Any], update: Update, client: str) -> dict[str, Any]:
        # A copy: a lane's memory is used again as soon as its client has been folded.
        accumulator[client] = tree.copy(update.value)
        return accumulator

    def merge(self, accumulator: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        return {**accumulator, **other}

    def finish(self, accumulator: dict[str, Any], context: Context) -> Total:
        cohort = list(context.cohort)
        value = {}
        for i, row in enumerate(mixing(self.topology, len(cohort), context.seed, context.round)):
            if cohort[i] in accumulator:
                value[cohort[i]] = _mix(accumulator, cohort, i, row)
        return Total(value, {}, len(accumulator), context.population)


def _mix(nodes: dict[str, Any], cohort: list[str], own: int, row: dict[int, float]) -> Any:
    present = {j: weight for j, weight in row.items() if cohort[j] in nodes}
    present[own] = present.get(own, 0.0) + 1 - sum(present.values())
    weights = [present[j] for j in sorted(present)]

    return tree.map(lambda *values: combined(values, weights), *(nodes[cohort[j]] for j in sorted(present)))


def combined(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """The weighted sum of arrays, half precision summed in float32; integers by their maximum."""
    if not arrays.is_float(values[0]):
        return reduce(arrays.maximum, values)
    total = arrays.widen(values[0]) * weights[0]
    for x, weight in zip(values[1:], weights[1:], strict=True):
        total = total + arrays.widen(x) * weight
    return arrays.cast(total, values[0])


def mean_of(trees: Sequence[Any]) -> Any:
    """The plain mean of trees that are alike."""
    even = [1 / len(trees)] * len(trees)
    return tree.map(lambda *values: combined(values, even), *trees)


def disagreement(models: Sequence[Any]) -> dict[str, float]:
    """The nodes' root mean square distance from their mean, as a measure of the history; none where there are none."""
    flat = [tree.flatten(model).astype(float) for model in models]
    if not flat:
        return {}
    middle = sum(flat[1:], start=flat[0]) / len(flat)
    return {"disagreement": float(sum(((x - middle) ** 2).sum() for x in flat) / len(flat)) ** 0.5}
