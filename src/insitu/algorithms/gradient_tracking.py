"""GradientTracking: gossip whose nodes follow the mean gradient, and so meet at the optimum of all data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from insitu.core import arrays, checks, schedules, tree
from insitu.core.batches import Batches, onward
from insitu.core.descent import Descent, Job, Work
from insitu.core.optim import Collect, Optimizer
from insitu.core.protocols import Reduce
from insitu.core.schedules import Schedule
from insitu.core.tree import Tree
from insitu.core.types import ByClient, Task, Total, Variables
from insitu.reduce.neighbours import Neighbours, disagreement, mean_of


@dataclass(frozen=True, kw_only=True)
class GradientTracking(Descent):
    r"""Each node steps along y, its running estimate of the mean of all nodes' gradients; x and y are mixed alike.

    .. math:: y_i^{t} = \sum_j W_{ij} y_j^{t-1} + \nabla f_i(x_i^{t}) - \nabla f_i(x_i^{t-1}), \qquad
              x_i^{t+1} = \sum_j W_{ij} \left( x_j^{t} - \eta \, y_j^{t} \right)

    Where nodes' data differ, gossip with a constant learning rate stays away from the optimum; the sum of all y is the
    sum of the nodes' gradients, so here the optimum of the mean loss is a fixed point. A round is one step and sends
    twice what gossip's does. Each node counts once; its last gradient is its memory.

    lr          the learning rate η, a number or a schedule by round; smaller for graphs that mix slowly
    batch_size  examples drawn on each node; None (default) takes all, without which y follows noise as well
    batches     ``"anew"``: drawn anew in every round; ``"onward"``: round after round through a node's epochs
    topology    "ring", "grid", "exponential", "complete" or "pairs", as for Gossip

    Nobody holds "the" model: evaluation and ``result.model()`` see the mean over the nodes, and the history's
    ``disagreement`` their distance from it. Personal parameters are not trained: there is no local step.

    Limit case: on the complete graph this is FedSGD with uniform weights.

    Reference: Nedić, Olshevsky and Shi, *Achieving Geometric Convergence for Distributed Optimization over Time-Varying
    Graphs*, SIAM J. Optim. 2017 (DIGing); with drawn batches: Koloskova, Lin and Stich, *An Improved Analysis of
    Gradient Tracking for Decentralized Machine Learning*, NeurIPS 2021. Deviation from DIGing: the step is taken before
    mixing (W(x − ηy) in place of Wx − ηy), which takes larger learning rates.
    """

    lr: float | Schedule = 0.1
    batch_size: int | None = None
    batches: Literal["anew", "onward"] = "anew"
    topology: str = "ring"
    tells_changes: ClassVar[bool] = False
    limit: ClassVar[str | None] = "topology='complete' is fedsgd with uniform weights"

    def __post_init__(self) -> None:
        schedules.check(self.lr)
        if self.batch_size is not None:
            checks.count(batch_size=self.batch_size)
        checks.one_of(("anew", "onward"), batches=self.batches)
        Neighbours(self.topology)

    def work(self) -> Work:
        return Work(None, 1, self.batch_size)

    def batches_(self, task: Task, n: int, *, pairs: bool) -> Batches:
        if self.batches == "anew":
            return super().batches_(task, n, pairs=pairs)
        return onward(n, self.batch_size, task.round - 1, 1, seed=task.seed, client=task.client, pairs=pairs)

    def optimizer_(self) -> Optimizer:
        return Collect()

    def rate(self, round: int) -> float:
        return schedules.rate(self.lr, round)

    def weigh(self, examples: int) -> float:
        return 1.0

    def clip_(self) -> float | None:
        return None

    def reduce(self) -> Reduce:
        return Neighbours(self.topology)

    def init(self, start: Variables | None) -> dict[str, Any]:
        return {**super().init(start), "nodes": {}}

    def ask(self, state: dict[str, Any], round: int) -> Tree | ByClient:
        usual = super().ask(state, round)
        assert not isinstance(usual, ByClient)
        default = {**usual, "tracker": tree.zeros_like(usual["shared"])}
        return ByClient({node: {**default, **own} for node, own in state["nodes"].items()}, default)

    def first_memory(self, shared: Tree) -> Tree | None:
        return tree.zeros_like(shared)

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        message, before = job.fixed["message"], job.fixed["memory"]
        now, lr = end["optimizer"]["gradient"]["shared"], message["lr"]
        tracker = tree.map(lambda y, g, last: y + (g - last), message["tracker"], now, before)
        stepped = tree.map(lambda x, y: x - arrays.cast(lr, x) * y, end["shared"], tracker)
        return {"shared": stepped, "tracker": tracker}, {"shared": 1.0, "tracker": 1.0}, now

    def absorb(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        mixed = {
            node: {"shared": own["shared"], "tracker": own["tracker"], "buffers": own.get("buffers", {})}
            for node, own in total.value.items()
        }
        return {**state, "nodes": {**state["nodes"], **mixed}}

    def tell(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        return self.absorb(state, total, round)

    def params(self, state: dict[str, Any]) -> Variables:
        nodes = list(state["nodes"].values())
        if not nodes:
            return super().params(state)
        return Variables(mean_of([n["shared"] for n in nodes]), mean_of([n["buffers"] for n in nodes]))

    def measures(self, state: dict[str, Any]) -> dict[str, float]:
        return disagreement([node["shared"] for node in state["nodes"].values()])

    @classmethod
    def example(cls) -> GradientTracking:
        return cls(lr=0.4, topology="ring")
