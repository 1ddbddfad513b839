"""The end of a chain: the loss's gradient in each step, the losses and metrics of a whole stretch at once.

Shapes: R = Σ n_t client-steps of a stretch, B examples each, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from insitu.learners.torch.chain.links import Memory
from insitu.learners.torch.losses import Loss, cross_entropy


class Head:
    """Any loss of one value an example: its gradient by autograd, through the loss alone."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def begin(self, outputs: Tensor, batch: Mapping[str, Any], counts: Sequence[int], memory: Memory) -> None:
        """A new stretch: ``outputs`` [R, B, C] will be filled step by step."""
        self._outputs, self._batch = outputs, batch
        self._y, self._share = batch["y"].split(counts), batch["share"].split(counts)

    def gradient(self, t: int, outputs: Tensor) -> Tensor:
        """The gradient [n, B, C] of Σ share·loss by step t's outputs [n, B, C]."""
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._loss(leaf.flatten(0, 1), self._y[t].flatten(0, 1))
            mean = (losses * self._share[t].flatten()).sum()
        (grad,) = torch.autograd.grad(mean, [leaf])
        return grad

    def losses(self) -> Tensor:
        """The losses of all steps [R, B]."""
        flat = self._loss(self._outputs.flatten(0, 1), self._batch["y"].flatten(0, 1))
        return flat.view(self._outputs.shape[:2])


class CrossEntropy(Head):
    """Softmax cross-entropy with labels: share · (softmax − one-hot), and log Σ exp(z − m) + m − z_y.

    torch's own softmax takes a row at a time, which with ten classes is five times slower than the four passes here.
    """

    def begin(self, outputs: Tensor, batch: Mapping[str, Any], counts: Sequence[int], memory: Memory) -> None:
        rows, b, _ = outputs.shape
        share = batch["share"].unsqueeze(2)
        self._outputs, self._place = outputs, batch["y"].unsqueeze(2)
        self._most = memory.take("most", (rows, b, 1), outputs)
        self._sum = memory.take("sum", (rows, b, 1), outputs)
        minus = memory.take("minus", outputs.shape, outputs).zero_().scatter_(2, self._place, share.neg())
        self._grads = memory.take("grads", outputs.shape, outputs)
        self._factor = memory.take("factor", (counts[0], b, 1), outputs)
        parts = (self._most, self._sum, share, minus, self._grads)
        self._steps = list(zip(*(part.split(counts) for part in parts), strict=True))

    def gradient(self, t: int, outputs: Tensor) -> Tensor:
        most, total, share, minus, grad = self._steps[t]
        torch.amax(outputs, -1, keepdim=True, out=most)
        torch.sub(outputs, most, out=grad).exp_()
        torch.sum(grad, -1, keepdim=True, out=total)
        return torch.addcmul(minus, grad, torch.div(share, total), out=grad)

    def losses(self) -> Tensor:
        return (self._sum.log() + self._most - self._outputs.gather(2, self._place)).squeeze(2)


def head_of(loss: Loss, outputs: Tensor, y: Tensor) -> Head:
    """The fastest head for outputs [R, B, C] and labels y."""
    return CrossEntropy(loss) if loss is cross_entropy and outputs.dim() == 3 and y.dim() == 2 else Head(loss)
