"""SCAFFOLD: clients correct their drift with control variates that they remember."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from insitu.core import arrays, tree
from insitu.core.descent import Job
from insitu.core.errors import PlanError
from insitu.core.local_sgd import LocalSGD
from insitu.core.optim import Sgd, optimizer
from insitu.core.tree import Tree
from insitu.core.types import Total, Variables


@dataclass(frozen=True, kw_only=True)
class Scaffold(LocalSGD):
    r"""Each client descends along :math:`g - c_i + c`, where the control variates say how its gradients differ.

    .. math::
        c_i^+ = c_i - c + \frac{w_t - w_t^i}{K \eta}, \qquad
        w_{t+1} = w_t + \eta_g \, \overline{w_t^i - w_t}, \qquad
        c \leftarrow c + \frac{|S|}{N} \, \overline{c_i^+ - c_i}

    K is the client's number of steps, η its learning rate. Clients must come back for their memory :math:`c_i` to be
    of use: prefer cohorts of at least a tenth of all clients. The model's change and the control's change have
    weights of their own: the control's is always one.

    weights  ``"uniform"`` as in the paper; ``"examples"`` as in FedAvg
    others   those of :class:`~insitu.core.local_sgd.LocalSGD`; the clients' optimiser is plain SGD, without clipping,
             since the control variates are estimated from the distance travelled

    Limit case: the first round, where all controls are zero, is FedAvg with the same weights.

    Reference: Karimireddy et al., *SCAFFOLD: Stochastic Controlled Averaging for Federated Learning*, ICML 2020,
    algorithm 1 with option II.
    """

    weights: Literal["examples", "uniform"] = "uniform"
    limit: ClassVar[str | None] = "first round is fedavg"

    def __post_init__(self) -> None:
        super().__post_init__()
        if optimizer(self.optimizer) != Sgd():
            raise PlanError(
                f"Scaffold's clients use plain SGD, not optimizer={self.optimizer!r}: the control variates are"
                " estimated from lr x steps; give the optimiser to the server (server=…) or use FedAvg"
            )
        if self.clip is not None:
            raise PlanError(f"Scaffold cannot clip gradients (clip={self.clip}): the controls would be biased")

    def init(self, start: Variables | None) -> dict[str, Any]:
        state = super().init(start)
        return {**state, "control": tree.zeros_like(state["shared"])}

    def extra(self, state: Tree) -> dict[str, Any]:
        return {"control": state["control"]}

    def first_memory(self, shared: Tree) -> Tree | None:
        return tree.zeros_like(shared)

    def correct(self, grads: Tree, shared: Tree, message: Tree, memory: Tree | None) -> Tree:
        assert memory is not None
        return tree.map(lambda g, c, own: g - own + c, grads, message["control"], memory)

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        value, weight, own = super().report(job, end)
        message = job.fixed["message"]
        distance = end["steps"] * message["lr"]
        if float(distance) == 0:  # a schedule that has come to zero: nothing moved, and nothing was learnt of c_i
            change = tree.zeros_like(message["control"])
        else:
            change = tree.map(  # c_i⁺ − c_i
                lambda c, moved: -c - moved / arrays.cast(distance, moved), message["control"], value["shared"]
            )
        return {**value, "control": change}, {**weight, "control": 1.0}, tree.add(own or {}, change)

    def absorb(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        share = total.clients / total.population
        control = tree.map(lambda c, d: c + share * d, state["control"], total.value["control"])
        return super().absorb({**state, "control": control}, total, round)

    @classmethod
    def example(cls) -> Scaffold:
        return cls(lr=0.1, epochs=2, batch_size=8)
