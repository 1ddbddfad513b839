"""A model is tried before its clients stand side by side: on real batches, against the learner's own gradient.

Lanes assume two things that no signature promises: that an example's loss depends on this example alone (so that
padding weighs nothing, and merged activations do not meet), and that the course of the forward pass does not depend on
values (so that one course is right for all lanes). What breaks either is found here, and runs another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from insitu.core import tree
from insitu.core.protocols import GradientLearner, StackedGradient
from insitu.engines.vectorized.step import variables

LOOKS = {
    Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item, Tensor.tolist, Tensor.numpy,
    Tensor.is_nonzero, Tensor.equal, Tensor.allclose, torch.is_nonzero, torch.equal, torch.allclose,
}  # fmt: skip
"""The ways in which numbers leave tensors and become Python's."""


class Blindfold(TorchFunctionMode):
    """While active, nothing that Python does can depend on the numbers in tensors."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKS:
            raise RuntimeError(f"its forward pass depends on values: it calls Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


def padding_shows(learner: GradientLearner, carry: Any, fixed: Any, batch: Any) -> bool:
    """Whether an example that weighs nothing changes the gradient: then no batch may be padded.

    ``batch`` [B, …] are one client's examples, B ≥ 2; the last one is left out, and weighs nothing, in turn.
    """
    columns = {name: x for name, x in batch.items() if name not in ("seed", "weight", "share")}
    rows = len(batch["weight"])
    still = batch["weight"].new_ones(rows)
    still[-1] = 0
    short = {**tree.map(lambda x: x[:-1], columns), "weight": still[:-1], "seed": batch["seed"]}
    whole = {**columns, "weight": still, "seed": batch["seed"]}
    without, _, _ = learner.gradient(variables(carry, fixed), short, carry["steps"])
    padded, _, _ = learner.gradient(variables(carry, fixed), whole, carry["steps"])
    return _far(padded, without)


def doubt(model: StackedGradient, learner: GradientLearner, carry: Any, fixed: Any, batch: Any) -> str | None:
    """What speaks against trusting the stacked model, or None: it is tried on two lanes with real batches.

    ``carry``, ``batch`` [2, …]. Each lane's gradient must be the learner's own, must not change by a bit when the other
    lane's examples do, and the fused step must be the gradient's. A ``forward`` that mixes examples, counts on its
    batch's size or follows another course for other values is found out here.
    """
    both, step = variables(carry, fixed), carry["steps"]
    try:
        with Blindfold():
            grads, _, _ = model.gradient(both, batch, step)
        other = {**batch, "x": tree.map(lambda c: torch.stack([c[0], torch.zeros_like(c[1])]), batch["x"])}
        again, _, _ = model.gradient(both, other, step)
        trained = tree.copy({"shared": carry["shared"], "personal": carry["personal"]})
        model.descend_all(variables({**carry, **trained}, fixed), batch, [2], step.clone(), 1.0)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if any(not torch.equal(a[0], b[0]) for a, b in zip(tree.values(grads), tree.values(again), strict=True)):
        return "a client's gradient depends on the other clients in its batch"
    for lane in range(2):
        alone: Mapping[str, Any] = tree.map(lambda x, lane=lane: x[lane], {**carry, "batch": batch})
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
    pairs = zip(tree.values(found), tree.values(truth), strict=True)
    return not all(float((a - b).norm()) <= bound for a, b in pairs)  # NaN is far from everything
