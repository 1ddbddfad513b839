"""Gossip: no server; nodes train and mix with their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from insitu.core.descent import Job
from insitu.core.errors import PlanError
from insitu.core.local_sgd import LocalSGD
from insitu.core.protocols import Reduce
from insitu.core.tree import Tree
from insitu.core.types import ByClient, Total, Variables
from insitu.reduce.neighbours import Neighbours, disagreement, mean_of


@dataclass(frozen=True, kw_only=True)
class Gossip(LocalSGD):
    r"""Each node trains from its own model, then takes a weighted mean over itself and its neighbours.

    .. math:: x_i \leftarrow \sum_j W_{ij} \, \mathrm{train}_j(x_j)

    W are the Metropolis–Hastings weights of the topology (:func:`insitu.reduce.neighbours.mixing`). Nobody holds "the"
    model: evaluation and ``result.model()`` see the mean over the nodes, and the history's ``disagreement`` says how
    far they are from it (root mean square distance of a node's parameters).

    topology  "ring", "grid", "exponential" or "complete": the more edges, the sooner nodes agree, the more is sent;
              "pairs": a matching drawn anew in every round, one message a node
    others    those of :class:`~insitu.core.local_sgd.LocalSGD`, without a server

    Limit case: on the complete graph, this is FedAvg with uniform weights.

    Reference: Lian et al., *Can Decentralized Algorithms Outperform Centralized Algorithms?*, NeurIPS 2017 (D-PSGD,
    here with local epochs); mixing weights: Xiao, Boyd and Kim, 2007; random pairs: Boyd et al., *Randomized Gossip
    Algorithms*, 2006, here all pairs of a matching at once.
    """

    topology: str = "ring"
    weights: Literal["examples", "uniform"] = "uniform"
    tells_changes: ClassVar[bool] = False
    learner_needed: ClassVar[Literal["gradient", "any", "none"]] = "any"
    limit: ClassVar[str | None] = "topology='complete' is fedavg with uniform weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        Neighbours(self.topology)
        if self.server is not None or self.server_lr != 1:
            raise PlanError("Gossip has no server: leave server and server_lr out, or use FedAvg")
        if self.weights != "uniform":
            raise PlanError(f"Gossip's weights come from its topology: leave weights={self.weights!r} out")

    def reduce(self) -> Reduce:
        return Neighbours(self.topology)

    def init(self, start: Variables | None) -> dict[str, Any]:
        return {**super().init(start), "nodes": {}}

    def ask(self, state: dict[str, Any], round: int) -> Tree | ByClient:
        default = super().ask(state, round)
        assert not isinstance(default, ByClient)
        return ByClient({node: {**default, **own} for node, own in state["nodes"].items()}, default)

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        return {"shared": end["shared"]}, {"shared": 1.0}, job.fixed["memory"]

    def tell(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        mixed = {
            node: {"shared": own.get("shared", own.get("fitted")), "buffers": own.get("buffers", {})}
            for node, own in total.value.items()
        }
        return {**state, "nodes": {**state["nodes"], **mixed}}

    def params(self, state: dict[str, Any]) -> Variables:
        nodes = list(state["nodes"].values())
        if not nodes:
            return super().params(state)
        return Variables(mean_of([n["shared"] for n in nodes]), mean_of([n["buffers"] for n in nodes]))

    def measures(self, state: dict[str, Any]) -> dict[str, float]:
        return disagreement([node["shared"] for node in state["nodes"].values()])

    @classmethod
    def example(cls) -> Gossip:
        return cls(topology="ring", lr=0.1, epochs=1, batch_size=8)
