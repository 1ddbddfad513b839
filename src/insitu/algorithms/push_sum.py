"""PushSum: gossip over edges of one direction (stochastic gradient push)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from insitu.core import arrays, tree
from insitu.core.descent import Job
from insitu.core.errors import PlanError
from insitu.core.local_sgd import LocalSGD
from insitu.core.protocols import Reduce
from insitu.core.tree import Tree
from insitu.core.types import ByClient, Total, Variables
from insitu.reduce import push_sum
from insitu.reduce.neighbours import disagreement, mean_of


@dataclass(frozen=True, kw_only=True)
class PushSum(LocalSGD):
    r"""Each node trains its model z, adds the change to its sum x, and sends shares of x and of its mass w.

    .. math:: x_i \leftarrow \sum_j P_{ij} \left( x_j + \mathrm{train}_j(z_j) - z_j \right), \qquad
              w_i \leftarrow \sum_j P_{ij} w_j, \qquad z_i = x_i / w_i

    Nobody needs to know who sends to it: P's columns sum to one (a node splits what it has evenly among those it sends
    to and itself), its rows need not, and the masses make up for that. The sum of all x and that of all w are kept, so
    nodes agree on the mean in the end. Nobody holds "the" model: evaluation and ``result.model()`` see Σx / Σw, and the
    history's ``disagreement`` is the root mean square distance of the nodes' models from their mean.

    topology  "one_peer" (default): each node sends to one other, 1, 2, 4, … places on in turn: one message a node, and
              all agree after log₂ n rounds where n is a power of two; "directed_exponential" and "directed_ring"; or
              gossip's graphs ("ring", "grid", "exponential", "complete", "pairs"), each edge in both directions
    others    those of :class:`~insitu.core.local_sgd.LocalSGD`, without a server

    Limit case: on a graph of edges in both directions whose nodes have equally many, all masses stay one, and this is
    Gossip; on the complete graph that is FedAvg with uniform weights.

    Reference: Assran, Loizou, Ballas and Rabbat, *Stochastic Gradient Push for Distributed Deep Learning*, ICML 2019,
    algorithm 1 (here with any number of local steps); push-sum: Kempe, Dobra and Gehrke, FOCS 2003.
    """

    topology: str = "one_peer"
    weights: Literal["examples", "uniform"] = "uniform"
    tells_changes: ClassVar[bool] = False
    limit: ClassVar[str | None] = "topology='complete' is fedavg with uniform weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        push_sum.PushSum(self.topology)
        if self.server is not None or self.server_lr != 1:
            raise PlanError("PushSum has no server: leave server and server_lr out, or use FedAvg")
        if self.weights != "uniform":
            raise PlanError(f"PushSum's weights come from its topology: leave weights={self.weights!r} out")

    def reduce(self) -> Reduce:
        return push_sum.PushSum(self.topology)

    def init(self, start: Variables | None) -> dict[str, Any]:
        return {**super().init(start), "nodes": {}}

    def ask(self, state: dict[str, Any], round: int) -> Tree | ByClient:
        usual = super().ask(state, round)
        assert not isinstance(usual, ByClient)
        default = {**usual, "mass": {"total": arrays.scalar(1, usual["lr"])}}
        own = {
            node: {"shared": _model(one), "buffers": one["buffers"], "mass": one["mass"]}
            for node, one in state["nodes"].items()
        }
        return ByClient({node: {**default, **one} for node, one in own.items()}, default)

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        message = job.fixed["message"]
        more = message["mass"]["total"] - 1
        # x + (end − z), where x = w·z: written so that a mass of one adds nothing, to the bit.
        pushed = tree.map(lambda z, e: e + arrays.cast(more, z) * z, message["shared"], end["shared"])
        return {"shared": pushed, "mass": message["mass"]}, {"shared": 1.0, "mass": 1.0}, job.fixed["memory"]

    def tell(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        mixed = {
            node: {"shared": one["shared"], "buffers": one.get("buffers", {}), "mass": one["mass"]}
            for node, one in total.value.items()
        }
        return {**state, "nodes": {**state["nodes"], **mixed}}

    def params(self, state: dict[str, Any]) -> Variables:
        nodes = list(state["nodes"].values())
        if not nodes:
            return super().params(state)
        whole = mean_of([{"shared": node["shared"], "mass": node["mass"]} for node in nodes])
        return Variables(_model(whole), mean_of([node["buffers"] for node in nodes]))

    def measures(self, state: dict[str, Any]) -> dict[str, float]:
        return disagreement([_model(node) for node in state["nodes"].values()])

    @classmethod
    def example(cls) -> PushSum:
        return cls(topology="directed_exponential", lr=0.1, epochs=1, batch_size=8)


def _model(node: Tree) -> Any:
    """z = x / w."""
    return tree.map(lambda x: x / arrays.cast(node["mass"]["total"], x), node["shared"])
