"""CHOCO-SGD: gossip with few bytes; nodes tell compressed changes to the copies that others keep of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from insitu.core import checks, tree
from insitu.core.descent import Job
from insitu.core.errors import PlanError
from insitu.core.local_sgd import LocalSGD
from insitu.core.protocols import GradientLearner, Reduce
from insitu.core.tree import Tree
from insitu.core.types import ByClient, Client, Task, Total, Variables
from insitu.reduce.copies import Copies
from insitu.reduce.neighbours import combined


@dataclass(frozen=True, kw_only=True)
class Choco(LocalSGD):
    r"""Each node trains, tells how far it is from its public copy, and moves towards its neighbours' copies.

    .. math::
        x_i^{+} = \mathrm{train}_i(x_i), \qquad \hat x_i \leftarrow \hat x_i + C(x_i^{+} - \hat x_i), \qquad
        x_i \leftarrow x_i^{+} + \gamma \sum_j W_{ij} (\hat x_j - \hat x_i)

    C is what the plan's stages do (:mod:`insitu.compress`): top-k, signs, low rank and quantisers alike. What they
    leave out stays in the difference and is told later, so error feedback (``feedback=True``) is refused. :math:`x_i`
    is in the node's memory and never leaves it; the public copies :math:`\hat x_i` are the state.
    W are the Metropolis–Hastings weights of the topology (:func:`insitu.reduce.neighbours.mixing`).

    gamma     γ, how far nodes move towards each other in a round: 1 without compression and with quantisers, less the
              more is left out (0.5 for the top 10 % or rank 1, 0.2 for the top 1 %); where it is too large, the nodes'
              disagreement grows, and where it is small, they agree late
    topology  "ring", "grid", "exponential" or "complete"
    others    those of :class:`~insitu.core.local_sgd.LocalSGD`, without a server

    Evaluation and ``result.model()`` see the mean over nodes of the public copies, mixed; ``disagreement`` is their
    root mean square distance from it.

    Limit case: without stages and with γ = 1 this is gossip.

    Reference: Koloskova, Stich and Jaggi, *Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
    Communication*, ICML 2019, algorithm 2. Deviations: local epochs instead of one step; the copies begin at the model
    that all nodes start from and know, where the paper's begin at zero; a node outside of a round's cohort is moved
    when it is asked next.
    """

    topology: str = "ring"
    gamma: float = 1.0
    weights: Literal["examples", "uniform"] = "uniform"
    tells_changes: ClassVar[bool] = True
    retells: ClassVar[bool] = True
    limit: ClassVar[str | None] = "gamma=1 is gossip"

    def __post_init__(self) -> None:
        super().__post_init__()
        Copies(self.topology)
        checks.share(gamma=self.gamma)
        if self.server is not None or self.server_lr != 1:
            raise PlanError("Choco has no server: leave server and server_lr out, or use FedAvg")
        if self.weights != "uniform":
            raise PlanError(f"Choco's weights come from its topology: leave weights={self.weights!r} out")

    def reduce(self) -> Reduce:
        return Copies(self.topology)

    def init(self, start: Variables | None) -> dict[str, Any]:
        return {**super().init(start), "nodes": {}}

    def ask(self, state: dict[str, Any], round: int) -> Tree | ByClient:
        default = super().ask(state, round)
        assert not isinstance(default, ByClient)
        return ByClient({node: {**default, **own} for node, own in state["nodes"].items()}, default)

    def first_memory(self, shared: Tree) -> Tree | None:
        return shared

    def open(self, task: Task, client: Client, learner: GradientLearner, memory: Tree | None, **more: Any) -> Job:
        job = super().open(task, client, learner, memory, **more)
        start = job.fixed["memory"]
        if "pull" in task.message:
            start = tree.add(start, task.message["pull"])
        # Steps read neither the memory nor the pull, and what is not there need not stand in lanes.
        message = {name: part for name, part in task.message.items() if name != "pull"}
        return replace(
            job, carry={**job.carry, "shared": start}, fixed={**job.fixed, "message": message, "memory": None}
        )

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        change = tree.subtract(end["shared"], job.fixed["message"]["shared"])
        return {"shared": change}, {"shared": 1.0}, end["shared"]

    def tell(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        before = {node: own["shared"] for node, own in state["nodes"].items()}
        copies = {
            node: tree.add(copy := before.get(node, state["shared"]), tree.cast(own["shared"], copy))
            for node, own in total.value.items()
        }
        told = {
            node: {
                "shared": copies[node],
                "buffers": own.get("buffers", state["buffers"]),
                "pull": self._pull(node, own["heard"], copies),
            }
            for node, own in total.value.items()
        }
        return {**state, "nodes": {**state["nodes"], **told}}

    def _pull(self, node: str, heard: dict[str, float], copies: dict[str, Any]) -> Any:
        """γ Σ_j W_ij (x̂_j − x̂_i)."""
        weights = [self.gamma * weight for weight in heard.values()]
        weights[list(heard).index(node)] -= self.gamma
        return tree.map(lambda *values: combined(values, weights), *(copies[other] for other in heard))

    def params(self, state: dict[str, Any]) -> Variables:
        nodes = list(state["nodes"].values())
        if not nodes:
            return super().params(state)
        even = [1 / len(nodes)] * len(nodes)
        shared = tree.map(lambda *values: combined(values, even), *_models(state))
        return Variables(shared, tree.map(lambda *values: combined(values, even), *(n["buffers"] for n in nodes)))

    def measures(self, state: dict[str, Any]) -> dict[str, float]:
        nodes = [tree.flatten(model).astype(float) for model in _models(state)]
        if not nodes:
            return {}
        middle = sum(nodes[1:], start=nodes[0]) / len(nodes)
        return {"disagreement": float(sum(((x - middle) ** 2).sum() for x in nodes) / len(nodes)) ** 0.5}

    @classmethod
    def example(cls) -> Choco:
        return cls(topology="ring", gamma=0.5, lr=0.1, epochs=1, batch_size=8)


def _models(state: dict[str, Any]) -> list[Any]:
    """Where the nodes are, as far as others know: x̂_i and its pull."""
    return [tree.add(node["shared"], node["pull"]) for node in state["nodes"].values()]
