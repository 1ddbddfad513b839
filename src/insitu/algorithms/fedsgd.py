"""FedSGD: one averaged gradient a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from insitu.core import arrays, checks, schedules, tree
from insitu.core.batches import Batches, onward
from insitu.core.descent import Descent, Job, Work
from insitu.core.optim import Collect, Optimizer, optimizer
from insitu.core.schedules import Schedule
from insitu.core.tree import Tree
from insitu.core.types import Task, Total


@dataclass(frozen=True, kw_only=True)
class FedSGD(Descent):
    r"""Every client tells the gradient of its data at the global model; the server takes one step along their mean.

    .. math:: w_{t+1} = w_t - \eta \sum_i \frac{n_i}{\sum_j n_j} \nabla F_i(w_t)

    This is also synchronous data-parallel SGD: with every client in the cohort and ``batch_size=None`` a round is
    exactly one step of SGD on the pooled data.

    lr          the server's learning rate, a number or a schedule by round
    batch_size  examples drawn on each client; None (default) takes all
    batches     ``"anew"``: drawn anew in every round; ``"onward"``: round after round through a client's epochs
    optimizer   the server's optimiser, by name or with its settings
    clip        the largest Euclidean norm of one client's gradient, or None
    weights     ``"examples"``: a client counts by the examples in its batch; ``"uniform"``: each counts once

    Personal parameters are not trained: there is no local step in which they could be.

    Reference: McMahan et al., AISTATS 2017, section 2 (FedSGD).
    """

    lr: float | Schedule = 0.1
    batch_size: int | None = None
    batches: Literal["anew", "onward"] = "anew"
    optimizer: str | Optimizer = "sgd"
    clip: float | None = None
    weights: Literal["examples", "uniform"] = "examples"

    def __post_init__(self) -> None:
        schedules.check(self.lr)
        if self.batch_size is not None:
            checks.count(batch_size=self.batch_size)
        if self.clip is not None:
            checks.positive(clip=self.clip)
        optimizer(self.optimizer)
        checks.one_of(("anew", "onward"), batches=self.batches)
        checks.one_of(("examples", "uniform"), weights=self.weights)

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
        return float(examples) if self.weights == "examples" else 1.0

    def clip_(self) -> float | None:
        return self.clip

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        weight = self.weigh(len(job.batches[0]))
        return {"shared": end["optimizer"]["gradient"]["shared"]}, {"shared": weight}, job.fixed["memory"]

    def absorb(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        server, shared = optimizer(self.optimizer), state["shared"]
        grads = tree.cast(total.value["shared"], shared)
        start = state.get("server") or server.init(shared)
        rate = arrays.scalar(self.rate(round), tree.first_leaf(shared))
        shared, after = server.update(grads, start, shared, rate)
        return {**state, "shared": shared, "server": after}

    @classmethod
    def example(cls) -> FedSGD:
        return cls(lr=0.5)
