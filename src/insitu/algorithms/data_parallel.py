"""DataParallel: one averaged gradient a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from insitu.core import arrays, checks, schedules, tree
from insitu.core.batches import Batches, pooled
from insitu.core.descent import Descent, Job, Work, clipped
from insitu.core.optim import Collect, Optimizer, optimizer
from insitu.core.protocols import GradientLearner
from insitu.core.schedules import Schedule
from insitu.core.tree import Tree
from insitu.core.types import Client, Task, Total


@dataclass(frozen=True, kw_only=True)
class DataParallel(Descent):
    r"""Synchronous stochastic gradient descent over all clients' examples together.

    .. math:: w_{t+1} = w_t - \eta \frac{1}{|B_t|} \sum_{i \in B_t} \nabla \ell_i(w_t)

    B_t is the t-th batch of the pooled examples: every epoch is a permutation of all of them, a function of the run's
    seed, the epoch and nothing else. Whoever holds an example of the batch computes its part of the gradient. So k
    workers with batches of b are one process with batches of k·b, and a run that goes on with another number of workers
    sees every example once an epoch all the same.

    lr          the learning rate, a number or a schedule by round
    batch_size  examples in a step, over all clients; None takes all
    steps       steps in a round: evaluation, checkpoints and the loss of work when a worker dies go by rounds
    optimizer   by name or with its settings; its state goes on from step to step
    clip        the largest Euclidean norm of the averaged gradient, or None

    With ``engine="spmd"`` the examples of a batch are cut evenly among the ranks, whoever's clients they are, and
    DistributedDataParallel averages the gradient while it is still being computed. Other engines, and models that need
    it (batch norm, dropout), ask every client that has examples in the batch. Personal parameters are not trained.

    Limit case: ``steps=1`` with ``batch_size=None`` is FedSGD.

    Reference: Li et al., *PyTorch Distributed: Experiences on Accelerating Data Parallel Training*, VLDB 2020.
    """

    lr: float | Schedule = 0.1
    batch_size: int | None = 32
    steps: int = 10
    optimizer: str | Optimizer = "sgd"
    clip: float | None = None
    limit: ClassVar[str | None] = "steps=1 and batch_size=None is fedsgd"

    def __post_init__(self) -> None:
        schedules.check(self.lr)
        if self.batch_size is not None:
            checks.count(batch_size=self.batch_size)
        checks.count(steps=self.steps)
        if self.clip is not None:
            checks.positive(clip=self.clip)
        optimizer(self.optimizer)

    # The steps of a round.

    def steps_a_round(self) -> int:
        return self.steps

    def examples(self, step: int, n: int, seed: int) -> np.ndarray:
        return pooled(n, self.batch_size, step, seed)

    def ask_step(self, state: dict[str, Any], round: int, parts: Mapping[int, np.ndarray]) -> dict[int, Tree]:
        base = self.ask(state, round)
        return {place: {"base": base, "examples": part} for place, part in parts.items()}

    # A client's part of one of them.

    def work(self) -> Work:
        return Work(None, 1, self.batch_size)

    def optimizer_(self) -> Optimizer:
        return Collect()

    def rate(self, round: int) -> float:
        return schedules.rate(self.lr, round)

    def weigh(self, examples: int) -> float:
        return float(examples)

    def clip_(self) -> float | None:
        return None  # the average is clipped, and no client's part of it

    def extra(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"step": state["step"]}

    def init(self, start: Any) -> dict[str, Any]:
        made = super().init(start)
        return {**made, "step": arrays.zero(tree.first_leaf(made["shared"]), whole=True)}

    def open(self, task: Task, client: Client, learner: GradientLearner, memory: Tree | None) -> Job:
        base = task.message.get("base", task.message)
        job = super().open(replace(task, message=base), client, learner, memory)
        # Asked outside of a round of steps, a client takes a batch of its own.
        index = task.message.get("examples")
        index = job.batches[0] if index is None else np.asarray(index)
        carry = {**job.carry, "steps": base["step"]}  # masks are drawn anew for each step of a round
        return replace(job, batches=Batches(index, np.array([len(index)])), carry=carry)

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        gradient = end["optimizer"]["gradient"]["shared"]
        return {"shared": gradient}, {"shared": self.weigh(len(job.batches[0]))}, job.fixed["memory"]

    def absorb(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        server, shared = optimizer(self.optimizer), state["shared"]
        grads = tree.cast(total.value["shared"], shared)
        if self.clip is not None:
            grads = clipped(grads, self.clip)
        start = state.get("server") or server.init(shared)
        rate = arrays.scalar(self.rate(round), tree.first_leaf(shared))
        shared, after = server.update(grads, start, shared, rate)
        return {**state, "shared": shared, "server": after, "step": state["step"] + 1}

    @classmethod
    def example(cls) -> DataParallel:
        return cls(lr=0.3, batch_size=12, steps=3)
