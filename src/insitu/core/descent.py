"""Descent: the abstract class of all gradient methods. open → step … → close.

A method fills in small pure functions and nothing else:

``extra``    what clients need to know beside the model (SCAFFOLD's control variate)
``correct``  the gradient as the method wants it (FedProx adds μ(w − w₀))
``report``   what a client tells, and what it remembers
``absorb``   how the server takes the total in

The inline engine calls ``local``; the lane engine calls ``open`` and ``close`` for each client and runs ``step`` for
many clients at once. So ``step`` is a pure function of trees: no Python number in it may differ between clients or
rounds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from insitu.core import arrays, seeds, tree
from insitu.core.batches import Batches, batches
from insitu.core.errors import PlanError
from insitu.core.mean import Mean
from insitu.core.optim import Optimizer, Sgd
from insitu.core.protocols import Algorithm, GradientLearner, Reduce
from insitu.core.tree import Tree
from insitu.core.types import ByClient, Client, Task, Total, Update, Variables


@dataclass(frozen=True)
class Job:
    """One client's local work, opened: what its steps change (``carry``) and what they only read (``fixed``).

    carry  {"shared", "buffers", "personal", "kept", "optimizer", "sums", "steps"}; ``kept`` are personal buffers
    fixed  {"message", "memory", "frozen"}
    """

    task: Task
    client: Client
    batches: Batches
    fixed: dict[str, Any]
    carry: dict[str, Any]
    dropout: int
    """The seed of the task's dropout masks."""


@dataclass(frozen=True)
class Work:
    """How much a client does in a round: ``epochs`` passes, or ``steps`` batches; ``batch_size=None``: all at once."""

    epochs: int | None
    steps: int | None
    batch_size: int | None


class Descent(Algorithm):
    """A method whose clients descend along gradients. Its state is ``{"shared", "buffers", "server", …}``."""

    tells_changes: ClassVar[bool] = True

    # What a method is made of: its fields answer these five.

    @abstractmethod
    def work(self) -> Work:
        """How much a client does in a round."""

    @abstractmethod
    def optimizer_(self) -> Optimizer:
        """The clients' optimiser."""

    @abstractmethod
    def rate(self, round: int) -> float:
        """The clients' learning rate in this round."""

    @abstractmethod
    def weigh(self, examples: int) -> float:
        """The weight of a client with so many examples."""

    @abstractmethod
    def clip_(self) -> float | None:
        """The largest norm of a local gradient, or None."""

    # And these three, where a method wants something else than usual.

    def work_in(self, round: int) -> Work:
        """How much a client does in this round, where rounds differ."""
        return self.work()

    def batches_(self, task: Task, n: int, *, pairs: bool) -> Batches:
        """The task's batches over a client's ``n`` examples; ``pairs`` as in :func:`insitu.core.batches.batches`."""
        work = self.work_in(task.round)
        return batches(
            n, work.batch_size, work.epochs, work.steps,
            seed=task.seed, round=task.round, client=task.client, pairs=pairs,
        )  # fmt: skip

    def keeps_optimizer(self) -> bool:
        """Whether a client's optimiser goes on in the next round where it stopped in this one."""
        return False

    # The twist: a method overrides what it needs.

    def extra(self, state: Tree) -> dict[str, Any]:
        """More entries for the message."""
        return {}

    def first_memory(self, shared: Tree) -> Tree | None:
        """The method's part of a client's memory before its first round."""
        return None

    def correct(self, grads: Tree, shared: Tree, message: Tree, memory: Tree | None) -> Tree:
        """The gradient of the shared parameters, as the method wants it."""
        return grads

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        """Values and weights of a client's update, and the method's new memory; ``end`` is the last carry."""
        weight = self.weigh(len(job.client.data))
        value = {"shared": tree.subtract(end["shared"], job.fixed["message"]["shared"])}
        return value, {"shared": weight}, job.fixed["memory"]

    @abstractmethod
    def absorb(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        """The state with the total's parts taken in (``buffers`` are taken in by ``tell``)."""

    # The four verbs.

    def init(self, start: Variables | None) -> dict[str, Any]:
        if start is None:
            raise PlanError(f"{type(self).__name__} trains a model: give Plan(learner=…)")
        return {"shared": start.shared, "buffers": start.buffers}

    def ask(self, state: dict[str, Any], round: int) -> Tree | ByClient:
        message = {"shared": state["shared"], "buffers": state["buffers"]}
        lr = arrays.scalar(self.rate(round), tree.first_leaf(state["shared"]))
        return {**message, "lr": lr, **self.extra(state)}

    def local(self, task: Task, client: Client, learner: Any, memory: Tree | None) -> tuple[Update, Tree | None]:
        if task.kind == "evaluate":
            return self.measure(task, client, learner, memory), memory
        learner.check(client)
        job = self.open(task, client, learner, memory)
        carry = job.carry
        for index in job.batches:
            carry = self.step(learner, job.fixed, carry, self.batch(learner, job, index))
        return self.close(learner, job, carry)

    def tell(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        state = self.absorb(state, total, round)
        if "buffers" in total.value:
            buffers, before = total.value["buffers"], state["buffers"]
            state = {**state, "buffers": tree.cast(buffers, before) if before else buffers}
        return state

    def params(self, state: dict[str, Any]) -> Variables:
        return Variables(shared=state["shared"], buffers=state["buffers"])

    def reduce(self) -> Reduce:
        return Mean()

    # One client's work, in pieces.

    def open(self, task: Task, client: Client, learner: GradientLearner, memory: Tree | None) -> Job:
        """Everything a client's steps need. Its data are checked by who calls, who may have seen them before."""
        message, memory = task.message, memory or {}
        start = learner.init(task.seed)
        personal = memory.get("personal") or start.personal
        own = memory.get("method")
        carry = {
            "shared": message["shared"],
            "buffers": message["buffers"],
            "personal": personal.get("params", {}),
            "kept": personal.get("buffers", {}),
        }
        trained = {"shared": carry["shared"], "personal": carry["personal"]}
        leaf = tree.first_leaf(trained)
        kept = memory.get("optimizer") if self.keeps_optimizer() else None
        carry["optimizer"] = self.optimizer_().init(trained) if kept is None else kept
        carry["sums"] = dict.fromkeys(("examples", *learner.metric_names), arrays.zero(leaf))
        carry["steps"] = arrays.zero(leaf, whole=True)
        fixed = {
            "message": message,
            "memory": self.first_memory(message["shared"]) if own is None else own,
            "frozen": start.frozen,
        }
        plan = self.batches_(task, len(client.data), pairs=learner.mixes)
        return Job(task, client, plan, fixed, carry, seeds.seed(task.seed, task.round, task.client, "dropout"))

    def batch(self, learner: GradientLearner, job: Job, index: np.ndarray) -> dict[str, Any]:
        """One step's batch with its exact number of examples."""
        leaf = tree.first_leaf({"shared": job.carry["shared"], "personal": job.carry["personal"]})
        weight = arrays.cast(arrays.like(np.ones(len(index)), leaf), leaf)
        seed = arrays.like(np.asarray(job.dropout), leaf)
        return {**learner.batch(job.client.data, index), "weight": weight, "seed": seed}

    def step(self, learner: GradientLearner, fixed: Tree, carry: Tree, batch: Tree) -> dict[str, Any]:
        """One step: gradient → correct → clip → optimiser."""
        variables = Variables(
            carry["shared"],
            carry["buffers"],
            {"params": carry["personal"], "buffers": carry["kept"]},
            fixed["frozen"],
        )
        grads, state, sums = learner.gradient(variables, batch, carry["steps"])
        return self.advance(fixed, carry, grads, state, sums)

    def advance(self, fixed: Tree, carry: Tree, grads: Tree, state: Tree, sums: Tree) -> dict[str, Any]:
        """The half of a step that comes after the gradient."""
        message = fixed["message"]
        shared = self.correct(grads["shared"], carry["shared"], message, fixed["memory"])
        direction = {"shared": shared, "personal": grads["personal"]}
        if (largest := self.clip_()) is not None:
            direction = clipped(direction, largest)
        params, optimizer = self.optimizer_().update(
            direction,
            carry["optimizer"],
            {"shared": carry["shared"], "personal": carry["personal"]},
            message["lr"],
        )
        return {
            "shared": params["shared"],
            "buffers": state["buffers"],
            "personal": params["personal"],
            "kept": state["personal"],
            "optimizer": optimizer,
            "sums": tree.map(lambda old, new: old + arrays.cast(new, old), carry["sums"], sums),
            "steps": carry["steps"] + 1,
        }

    def plain(self) -> bool:
        """Whether a step is w ← w − lr·g and nothing else: then it can be taken in one go with the gradient."""
        own = type(self)
        untouched = own.correct is Descent.correct and own.step is Descent.step and own.advance is Descent.advance
        return untouched and self.clip_() is None and self.optimizer_() == Sgd()

    def close(self, learner: GradientLearner, job: Job, end: dict[str, Any]) -> tuple[Update, Tree | None]:
        """The client's update and new memory after its last step."""
        value, weight, own = self.report(job, end)
        if end["buffers"]:
            value, weight = {**value, "buffers": end["buffers"]}, {**weight, "buffers": weight["shared"]}
        sums = {name: float(x) for name, x in end["sums"].items()}
        memory: dict[str, Any] = {} if own is None else {"method": own}
        if self.keeps_optimizer() and end["optimizer"]:
            memory["optimizer"] = end["optimizer"]
        if end["personal"] or end["kept"]:
            memory["personal"] = {"params": end["personal"], "buffers": end["kept"]}
        return Update(value, weight, sums), memory or None

    def measure(self, task: Task, client: Client, learner: Any, memory: Tree | None) -> Update:
        """Metric sums of the model in the message, with the client's own personal variables, on its held-out part."""
        start = learner.init(task.seed)
        personal = (memory or {}).get("personal") or start.personal
        variables = Variables(task.message["shared"], task.message["buffers"], personal, start.frozen)
        if client.holdout is None:
            return Update({}, {}, {"examples": 0.0})
        return Update({}, {}, learner.evaluate(variables, client.holdout))


def clipped(grads: Tree, largest: float) -> Any:
    """The gradient scaled down to Euclidean norm ``largest`` where it is longer."""
    norm = arrays.sqrt(tree.square_norm(grads))
    factor = largest / arrays.maximum(norm, norm * 0 + largest)
    return tree.map(lambda g: g * arrays.cast(factor, g), grads)


def descend(
    state: dict[str, Any], mean: Mapping[str, Any], server: Optimizer, lr: float, spare: bool = False
) -> dict[str, Any]:
    """The server's step along the clients' mean change, which counts as a negative gradient (Reddi et al. 2021).

    ``spare``: nobody else needs the arrays of ``mean``, and the new parameters may lie in them.
    """
    shared = state["shared"]
    if isinstance(server, Sgd) and not server.weight_decay and lr == 1:
        # The plain average. Adding the change itself saves two roundings and a copy of the model.
        add = arrays.added_in_place if spare else lambda d, w: w + d
        return {**state, "shared": tree.map(lambda w, d: add(arrays.cast(d, w), w), shared, mean)}
    grads = tree.map(lambda w, d: -arrays.cast(d, w), shared, mean)
    rate = arrays.scalar(lr, tree.first_leaf(shared))
    start = state.get("server") or server.init(shared)
    shared, after = server.update(grads, start, shared, rate)
    return {**state, "shared": shared, "server": after}
