"""What all stacked layers of one model share, and the two ways in which a gradient reaches its parameter.

Shapes: K lanes, B examples a lane. Activations are *merged*, ``[K·B, …]``, lane after lane: whatever treats examples
one by one (activations, pooling, residual sums, attention, a user's own ``forward``) runs as it is. Only layers with
parameters know of lanes; their parameters are *stacked*, ``[K, …]``.

**Fused**: where a step is nothing but ``w ← w − lr·g``, the backward pass takes it as soon as it has g, in place, and a
linear layer's g is never written to memory (``W.baddbmm_(gᵀ, x, alpha=−lr)``). Every layer has used its parameter
before it changes it; a layer that is called twice in a pass waits until the gradients of both calls are one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class Lanes:
    """``lr`` is None where gradients are wanted, else the fused step's learning rate."""

    def __init__(self) -> None:
        self.count = 1
        self.lr: float | None = None
        self.anchor = torch.zeros((), requires_grad=True)
        """Keeps layers in the graph whose parameters, being changed in place, ask for no gradient."""


class _Take(Function):
    """The parameter itself; backwards, the step is taken."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, lanes: Lanes, anchor: Tensor) -> Tensor:
        ctx.parameter, ctx.lr = parameter, lanes.lr
        return parameter.data  # the same memory, but no view: what a function returned as a view may not change

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.parameter.sub_(grads[0], alpha=ctx.lr)
        return None, None, None


def taken(parameter: Tensor, lanes: Lanes) -> Tensor:
    """The parameter for any differentiable use. Fused, its whole gradient ends in a step: so once a pass."""
    if lanes.lr is None:
        return parameter
    return _Take.apply(parameter, lanes, lanes.anchor)  # type: ignore[no-any-return]
