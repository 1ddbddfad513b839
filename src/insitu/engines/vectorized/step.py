"""The three ways to advance n lanes by one batch: all one answer, each faster than the next where it can be had.

fused    the model in stacked layers, a step of plain descent taken in the backward pass itself, in place
stacked  the model in stacked layers, the rest of the method's step (correction, clipping, optimiser) by ``vmap``
mapped   the whole step by ``vmap``: any model that transforms can go through; this one can be compiled

Shapes: n lanes in front of every leaf of carry, memory and (unless it is the same for all) message.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from insitu.core import tree
from insitu.core.descent import Descent
from insitu.core.protocols import GradientLearner, Stackable, StackedGradient
from insitu.core.types import Variables

Carry = dict[str, Any]
Step = Callable[[Carry, Mapping[str, Any], Mapping[str, Any]], Carry]
"""(carry, fixed, batch) → carry, which may be the same tensors, changed."""


def variables(carry: Mapping[str, Any], fixed: Mapping[str, Any]) -> Variables:
    """The lanes' models."""
    own = {"params": carry["personal"], "buffers": carry["kept"]}
    return Variables(carry["shared"], carry["buffers"], own, fixed["frozen"])


def fused(model: StackedGradient, lr: float) -> Step:
    """Plain descent with one learning rate for all lanes."""

    def step(carry: Carry, fixed: Mapping[str, Any], batch: Mapping[str, Any]) -> Carry:
        sums = model.descend(variables(carry, fixed), batch, carry["steps"], lr)
        for name, total in carry["sums"].items():
            total.add_(sums[name])
        carry["steps"].add_(1)
        return carry

    return step


def stacked(algorithm: Descent, model: StackedGradient, *, same_message: bool) -> Step:
    """The method's own half of the step, mapped over lanes, after their gradient."""

    def advance(carry: Any, fixed: Any, grads: Any, state: Any, sums: Any) -> Any:
        return algorithm.advance(fixed, carry, grads, state, sums)

    def step(carry: Carry, fixed: Mapping[str, Any], batch: Mapping[str, Any]) -> Carry:
        grads, state, sums = model.gradient(variables(carry, fixed), batch, carry["steps"])
        dims = (0, _dims(fixed, same_message), 0, 0, 0)
        new: Carry = torch.func.vmap(advance, in_dims=dims)(carry, fixed, grads, state, sums)
        return new

    return step


def mapped(algorithm: Descent, learner: GradientLearner, *, same_message: bool, compiled: bool) -> Step:
    """The whole step, mapped over lanes."""
    if isinstance(learner, Stackable):
        learner = learner.mapped()

    def one(carry: Any, fixed: Any, batch: Any) -> Any:
        return algorithm.step(learner, fixed, carry, batch)

    def many(carry: Carry, fixed: Mapping[str, Any], batch: Mapping[str, Any]) -> Carry:
        dims = (0, _dims(fixed, same_message), 0)
        new: Carry = torch.func.vmap(one, in_dims=dims)(carry, fixed, batch)
        return new

    if compiled:
        return torch.compile(many, dynamic=False)

    def quiet(carry: Carry, fixed: Mapping[str, Any], batch: Mapping[str, Any]) -> Carry:
        with warnings.catch_warnings():
            # Recurrent layers without a batching rule fall back to a loop; the answer is right, and the speed known.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return many(carry, fixed, batch)

    return quiet


def _dims(fixed: Mapping[str, Any], same_message: bool) -> dict[str, Any]:
    return {
        "message": None if same_message else 0,
        "memory": None if fixed["memory"] is None else 0,
        "frozen": None,
    }


def doubt(model: StackedGradient, learner: GradientLearner, carry: Any, fixed: Any, batch: Any) -> str | None:
    """What speaks against trusting the stacked model, or None: it is tried on two lanes with real batches.

    ``carry``, ``batch`` [2, …]. Each lane's gradient must be the learner's own, must not change by a bit when the other
    lane's examples do, and the fused step must be the gradient's. A ``forward`` that mixes examples or counts on its
    batch's size is found out here.
    """
    both, step = variables(carry, fixed), carry["steps"]
    try:
        grads, _, _ = model.gradient(both, batch, step)
        other = {**batch, "x": tree.map(lambda c: torch.stack([c[0], torch.zeros_like(c[1])]), batch["x"])}
        again, _, _ = model.gradient(both, other, step)
        trained = tree.copy({"shared": carry["shared"], "personal": carry["personal"]})
        model.descend(variables({**carry, **trained}, fixed), batch, step, 1.0)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if any(not torch.equal(a[0], b[0]) for a, b in zip(tree.values(grads), tree.values(again), strict=True)):
        return "a client's gradient depends on the other clients in its batch"
    for lane in range(2):
        alone = tree.map(lambda x, lane=lane: x[lane], {**carry, "batch": batch})
        truth, _, _ = learner.gradient(variables(alone, fixed), alone["batch"], alone["steps"])
        if _far(tree.map(lambda x, lane=lane: x[lane], grads), truth):
            return "its gradients are not those of the clients alone"
    start = {"shared": carry["shared"], "personal": carry["personal"]}
    if _far(tree.subtract(start, trained), grads, trained):
        return "its fused steps are not those of its gradients"
    return None


def _far(found: Any, truth: Any, size: Any = None) -> bool:
    """Whether two trees differ by more than rounding, in any tensor; ``size``: also that of numbers like these."""
    total = tree.norm(truth) + (0.0 if size is None else tree.norm(size))
    precise = tree.first_leaf(truth).dtype
    bound = torch.finfo(precise).eps ** 0.6 * total
    return any(float((a - b).norm()) > bound for a, b in zip(tree.values(found), tree.values(truth), strict=True))
