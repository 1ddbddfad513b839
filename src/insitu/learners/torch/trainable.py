"""Trainable: a module and its loss as one module, which DistributedDataParallel can be put around."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from insitu.learners.torch.losses import Loss


class Trainable(nn.Module):
    """A copy of the module. ``parameters`` are those of the model by their own names, frozen ones without gradient."""

    def __init__(self, module: nn.Module, loss: Loss, metrics: Mapping[str, Loss], trained: Collection[str]) -> None:
        super().__init__()
        self.model = copy.deepcopy(module).train()
        self._loss, self._metrics = loss, metrics
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)

    def shared(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Parameters and buffers of these names take these values; parameters share their memory."""
        for name, parameter in self.model.named_parameters():
            if name in values:
                parameter.data = values[name]
        for name, buffer in self.model.named_buffers():
            if name in values:
                buffer.copy_(values[name])

    def forward(self, x: Any, y: Tensor, scale: float, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``scale`` Σ weight·loss, and the metric sums; ``weight`` [B] is 0 for an example that stands in."""
        output = self.model(x)
        loss = (self._loss(output, y) * weight).sum()
        sums = {"examples": weight.sum(), "loss": loss.detach()}
        for name, metric in self._metrics.items():
            sums[name] = (metric(output, y).detach() * weight).sum()
        return loss * scale, sums
