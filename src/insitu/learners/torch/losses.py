"""Losses and metrics, one value an example."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from insitu.core.errors import PlanError

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


def cross_entropy_gradient(logits: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [B] of logits [B, C], and the gradient [B, C] of Σ share·loss: share · (softmax − one-hot)."""
    logs, place = logits.log_softmax(1), y.unsqueeze(1)
    losses = logs.gather(1, place).squeeze(1).neg_()
    return losses, logs.exp_().scatter_add_(1, place, logits.new_full((), -1).expand(place.shape)).mul_(
        share.unsqueeze(1)
    )


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


def named_loss(loss: str | Loss) -> tuple[str | None, Loss]:
    """A loss and its name, where it has one. Raises PlanError for what is no loss."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise PlanError(f"loss={loss!r} is not known: use {', '.join(LOSSES)} or a callable (output, y) → [B]")
        return loss, LOSSES[loss]
    if not callable(loss):
        raise PlanError(f"loss={loss!r} is neither a name ({', '.join(LOSSES)}) nor a callable (output, y) → [B]")
    if inspect.isclass(loss):
        raise PlanError(f"loss={loss.__name__} is a class: give an instance made with reduction='none'")
    return None, loss


def named_metrics(metrics: Sequence[str | Loss] | None, loss: str | None) -> dict[str, Loss]:
    """Metrics by name; None: those that go with the loss. Raises PlanError for what is no metric."""
    if isinstance(metrics, str):
        raise PlanError(f"metrics={metrics!r}: give a tuple, ({metrics!r},)")
    known = METRICS.get(loss or "", {})
    if metrics is None:
        return {} if loss == "mse" else dict(known)
    named: dict[str, Loss] = {}
    for metric in metrics:
        if isinstance(metric, str):
            every = {**METRICS["cross_entropy"], **METRICS["mse"], **known}
            if metric not in every:
                raise PlanError(f"metric {metric!r} is not known: use {', '.join(every)} or a callable")
            named[metric] = every[metric]
        else:
            named[getattr(metric, "__name__", type(metric).__name__)] = metric
    return named
