"""LocalSGD: the fields that all methods with local epochs share, and their server's half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from insitu.core import checks, schedules, seeds, tree
from insitu.core.batches import Batches, epoch_steps, onward
from insitu.core.descent import Descent, Work, descend
from insitu.core.errors import PlanError
from insitu.core.optim import Optimizer, Sgd, optimizer
from insitu.core.protocols import FitLearner
from insitu.core.schedules import Schedule
from insitu.core.tree import Tree
from insitu.core.types import Client, Task, Total, Update, Variables


@dataclass(frozen=True, kw_only=True)
class LocalSGD(Descent):
    """Local epochs on every client, then one server step.

    lr          the clients' learning rate, a number or a schedule by round
    epochs      passes over a client's data in a round (1 unless ``steps`` is given)
    steps       or: batches in a round, the same for every client
    batch_size  examples in a batch; None takes a client's whole data at once
    batches     ``"anew"``: every round starts a new epoch; ``"onward"``: a client's rounds go on through its epochs, so
                that round r takes steps (r-1)·H … r·H-1 of a walk that sees every example once an epoch
    optimizer   the clients' optimiser, by name or with its settings: ``"adam"``, ``Momentum(beta=0.95)``
    keep_optimizer  whether its state is kept in the client's memory from round to round; else it starts anew in each
    clip        the largest Euclidean norm of a local gradient (after the method's correction), or None
    server      the server's optimiser: None is the plain average, ``Adam()`` is FedAdam, ``Momentum()`` FedAvgM
    server_lr   the server's learning rate
    weights     ``"examples"``: a client counts by its examples; ``"uniform"``: each counts once
    """

    lr: float | Schedule = 0.1
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = 10
    batches: Literal["anew", "onward"] = "anew"
    optimizer: str | Optimizer = "sgd"
    keep_optimizer: bool = False
    clip: float | None = None
    server: str | Optimizer | None = None
    server_lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"
    usual_steps: ClassVar[int | None] = None
    """Steps in a round where neither ``epochs`` nor ``steps`` is given; None: one epoch."""

    def __post_init__(self) -> None:
        schedules.check(self.lr)
        if self.epochs is not None and self.steps is not None:
            raise PlanError(
                f"epochs={self.epochs} and steps={self.steps} both say how much a client does: give one of them"
            )
        for name in ("epochs", "steps", "batch_size"):
            if getattr(self, name) is not None:
                checks.count(**{name: getattr(self, name)})
        if self.clip is not None:
            checks.positive(clip=self.clip)
        checks.positive(server_lr=self.server_lr)
        checks.one_of(("examples", "uniform"), weights=self.weights)
        checks.one_of(("anew", "onward"), batches=self.batches)
        checks.one_of((True, False), keep_optimizer=self.keep_optimizer)
        optimizer(self.optimizer)
        if self.server is not None:
            optimizer(self.server, "server")

    def work(self) -> Work:
        if self.epochs is None and self.steps is None:
            return Work(None if self.usual_steps else 1, self.usual_steps, self.batch_size)
        return Work(self.epochs, self.steps, self.batch_size)

    def batches_(self, task: Task, n: int, *, pairs: bool) -> Batches:
        if self.batches == "anew":
            return super().batches_(task, n, pairs=pairs)
        epoch = epoch_steps(n, self.batch_size, pairs=pairs)
        first, last = self.walked(task.round, epoch), self.walked(task.round + 1, epoch)
        return onward(n, self.batch_size, first, last - first, seed=task.seed, client=task.client, pairs=pairs)

    def walked(self, round: int, epoch: int) -> int:
        """The steps before this round, for a client whose epoch has so many."""
        work = self.work()
        return (round - 1) * (work.steps or epoch * (work.epochs or 1))

    def keeps_optimizer(self) -> bool:
        return self.keep_optimizer

    def optimizer_(self) -> Optimizer:
        return optimizer(self.optimizer)

    def rate(self, round: int) -> float:
        return schedules.rate(self.lr, round)

    def weigh(self, examples: int) -> float:
        return float(examples) if self.weights == "examples" else 1.0

    def clip_(self) -> float | None:
        return self.clip

    def local(self, task: Task, client: Client, learner: Any, memory: Tree | None) -> tuple[Update, Tree | None]:
        if task.kind == "train" and _fits(learner):
            return fit_black_box(self, task, client, learner, memory)
        return super().local(task, client, learner, memory)

    def absorb(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        server = optimizer(self.server or Sgd())
        if "fitted" not in total.value:
            return descend(state, total.value["shared"], server, self.server_lr, total.spare)
        fitted = total.value["fitted"]
        if tree.first_leaf(state["shared"]) is None:
            return {**state, "shared": fitted}
        return descend(state, tree.subtract(fitted, state["shared"]), server, self.server_lr)


_FITS: dict[type, bool] = {}


def _fits(learner: Any) -> bool:
    """Whether it is a FitLearner: asked for every client, where a look at the protocol takes longer than a step."""
    kind = type(learner)
    if kind not in _FITS:
        _FITS[kind] = isinstance(learner, FitLearner)
    return _FITS[kind]


def fit_black_box(
    algorithm: LocalSGD, task: Task, client: Client, learner: Any, memory: Tree | None
) -> tuple[Update, Tree | None]:
    """Local training by a learner that has no gradients: its fitted parameters travel as they are, as ``fitted``.

    A black box may have no parameters before its first fit, so there may be nothing to take a difference from.
    """
    learner.check(client)
    work = algorithm.work()
    start = Variables(task.message["shared"], task.message["buffers"])
    fitted, sums = learner.fit(
        start,
        client.data,
        epochs=work.epochs or 1,
        batch_size=work.batch_size,
        seed=seeds.seed(task.seed, task.round, task.client, "fit"),
    )
    weight = algorithm.weigh(len(client.data))
    value = {"fitted": fitted.shared, **({"buffers": fitted.buffers} if fitted.buffers else {})}
    return Update(value, dict.fromkeys(value, weight), sums), memory
