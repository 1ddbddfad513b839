"""PushSum: no server and edges of one direction; every node shares what it has out among those it sends to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from insitu.core import checks, tree
from insitu.core.protocols import Reduce
from insitu.core.types import Context, Total, Update
from insitu.reduce.neighbours import DRAWN, TOPOLOGIES, Edges, combined, edges_of


def directed_ring(n: int, round: int) -> Edges:
    """Each node sends to the one after it."""
    return [{(i + 1) % n} - {i} for i in range(n)]


def directed_exponential(n: int, round: int) -> Edges:
    """Each node sends to those 1, 2, 4, … places after it."""
    return [{(i + 2**p) % n for p in range(_powers(n))} - {i} for i in range(n)]


def one_peer(n: int, round: int) -> Edges:
    """Each node sends to one other: 1, 2, 4, … places after it, in turn (Assran et al. 2019, section 3)."""
    hop = 2 ** ((round - 1) % _powers(n))
    return [{(i + hop) % n} - {i} for i in range(n)]


DIRECTED: dict[str, Callable[[int, int], Edges]] = {
    "directed_ring": directed_ring,
    "directed_exponential": directed_exponential,
    "one_peer": one_peer,
}
"""For each of n nodes, those that it sends to in a round."""
GRAPHS = (*DIRECTED, *TOPOLOGIES, *DRAWN)


def shares(receivers: Edges) -> list[dict[int, float]]:
    r"""What each node takes of the others: columns sum to one, so that sending keeps the sum over nodes.

    .. math:: P_{ij} = \frac{1}{1 + d_j} \; \text{where } j \text{ sends to } i, \qquad
              P_{jj} = 1 - \sum_{i \ne j} P_{ij}

    d_j is the number of nodes that j sends to. Row i is a dict {j: P_ij} in the order of j.
    """
    rows: list[dict[int, float]] = [{} for _ in receivers]
    for j, others in enumerate(receivers):
        for i in others:
            rows[i][j] = 1 / (1 + len(others))
        rows[j][j] = 1 - sum(1 / (1 + len(others)) for _ in others)
    return [dict(sorted(row.items())) for row in rows]


@dataclass(frozen=True)
class PushSum(Reduce):
    """One total a node: ``Total.value = {node: {part: P · values}}``, over the round's cohort in the given graph.

    Values are sums that travel with a ``mass``, mixed by the same shares: value over mass is a node's estimate of the
    mean. ``buffers`` are no sums: of those a node takes the mean, by shares and masses. Whoever failed this round gets
    nothing, and sends nothing: what the others would have sent it, they keep, so that no mass is lost.
    """

    topology: str = "ring"
    needs: ClassVar[Literal["stream", "each"]] = "each"
    gives: ClassVar[str] = "a total a node, by pushed sums"

    def __post_init__(self) -> None:
        checks.one_of(GRAPHS, topology=self.topology)

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
        n, value = len(cohort), {}
        graph = DIRECTED.get(self.topology)
        receivers = graph(n, context.round) if graph else edges_of(self.topology, n, context.seed, context.round)
        for i, row in enumerate(shares(receivers)):
            if cohort[i] not in accumulator:
                continue
            row[i] += sum(1 / (1 + len(receivers[i])) for j in receivers[i] if cohort[j] not in accumulator)
            present = {cohort[j]: share for j, share in row.items() if cohort[j] in accumulator}
            value[cohort[i]] = _taken(accumulator, present)
        return Total(value, {}, len(accumulator), context.population)


def _taken(nodes: Mapping[str, Any], row: Mapping[str, float]) -> dict[str, Any]:
    masses = [share * _mass(nodes[node]) for node, share in row.items()]
    weights = {"buffers": [mass / sum(masses) for mass in masses]}
    told = [nodes[node] for node in row]
    return {
        part: tree.map(
            lambda *values, w=weights.get(part, list(row.values())): combined(values, w), *(one[part] for one in told)
        )
        for part in told[0]
    }


def _mass(value: Mapping[str, Any]) -> float:
    return float(value["mass"]["total"]) if "mass" in value else 1.0


def _powers(n: int) -> int:
    return max(1, math.ceil(math.log2(max(n, 2))))
