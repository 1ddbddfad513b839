"""Losses and metrics, one value an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Any, Tensor], Tensor]
"""(output, y) → [B]: one value for every example of the batch."""


def per_example(values: Tensor) -> Tensor:
    """[B, …] → [B]: the mean over everything but the batch."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Softmax cross-entropy of logits [B, C] with labels [B], or of [B, T, C] with [B, T] (mean over T)."""
    if output.dim() == y.dim() + 1 and y.dim() > 1:
        output = output.movedim(-1, 1)
    return per_example(F.cross_entropy(output, y, reduction="none"))


def mse(output: Tensor, y: Tensor) -> Tensor:
    """Squared error, mean over an example's outputs. An output [B, 1] answers targets [B]."""
    return per_example((output.reshape(y.shape) - y) ** 2)


def binary_cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of one logit an example [B] or [B, 1] with labels 0 and 1."""
    target = y.to(output.dtype)
    return per_example(F.binary_cross_entropy_with_logits(output.reshape(y.shape), target, reduction="none"))


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """1 where the largest of [B, …, C] is at the label, else 0."""
    return per_example((output.argmax(-1) == y).to(output.dtype))


def binary_accuracy(output: Tensor, y: Tensor) -> Tensor:
    """1 where the logit's sign agrees with the label, else 0."""
    return per_example(((output.reshape(y.shape) > 0) == (y > 0.5)).to(output.dtype))


def mean_absolute_error(output: Tensor, y: Tensor) -> Tensor:
    """|output − y|, mean over an example's outputs."""
    return per_example((output.reshape(y.shape) - y).abs())


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "binary_cross_entropy": binary_cross_entropy,
}
METRICS: dict[str, dict[str, Loss]] = {
    "cross_entropy": {"accuracy": accuracy},
    "binary_cross_entropy": {"accuracy": binary_accuracy},
    "mse": {"mae": mean_absolute_error},
}
"""Metrics by the loss that they go with."""
