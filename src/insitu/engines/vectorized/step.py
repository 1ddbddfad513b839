"""The three ways to advance n lanes by one batch: all one answer, each faster than the next where it can be had.

fused    the model in stacked layers, a step of plain descent taken in the backward pass itself, in place
stacked  the model in stacked layers, the rest of the method's step (correction, clipping, optimiser) by ``vmap``
mapped   the whole step by ``vmap``: any model that transforms can go through; this one can be compiled

Shapes: n lanes in front of every leaf of carry, memory and (unless it is the same for all) message.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from insitu.core.descent import Descent
from insitu.core.protocols import GradientLearner, Stackable, StackedGradient
from insitu.core.types import Variables

Carry = dict[str, Any]
Step = Callable[[Carry, Mapping[str, Any], Mapping[str, Any]], Carry]
"""(carry, fixed, batch) → carry."""
Steps = Callable[[Carry, Mapping[str, Any], Mapping[str, Any], Sequence[int]], None]
"""(carry, fixed, batches, counts): the carry is changed, by one step of the first n lanes for each n in ``counts``."""


def variables(carry: Mapping[str, Any], fixed: Mapping[str, Any]) -> Variables:
    """The lanes' models."""
    own = {"params": carry["personal"], "buffers": carry["kept"]}
    return Variables(carry["shared"], carry["buffers"], own, fixed["frozen"])


def fused(model: StackedGradient, lr: float, *, steady: bool = False) -> Steps:
    """Plain descent with one learning rate for all lanes, many steps in one call.

    ``steady``: all steps have all lanes, whose sums are then added without a list of who is where.
    """

    def steps(carry: Carry, fixed: Mapping[str, Any], batch: Mapping[str, Any], counts: Sequence[int]) -> None:
        sums = model.descend_all(variables(carry, fixed), batch, counts, carry["steps"], lr)
        if steady:
            for name, total in carry["sums"].items():
                total.add_(sums[name].view(len(counts), -1).sum(0).to(total.dtype))
            return
        lane = torch.from_numpy(np.concatenate([np.arange(n) for n in counts])).to(carry["steps"].device)
        for name, total in carry["sums"].items():
            total.index_add_(0, lane, sums[name].to(total.dtype))

    return steps


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
