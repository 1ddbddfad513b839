"""Layers with one set of parameters a lane. K lanes, B examples a lane; inputs and outputs are merged, [K·B, …]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from insitu.learners.torch.stacked.context import Lanes, taken


class Layer(nn.Module):
    """A stacked layer: ``names`` are its parameters, set by :class:`~insitu.learners.torch.stacked.gradient.Stacked`.

    ``calls`` counts uses in a pass; ``again`` says that there are several, so that no single one may end in a step.
    """

    def __init__(self, original: nn.Module, lanes: Lanes) -> None:
        super().__init__()
        self.lanes = lanes
        self.names = [name for name, _ in original.named_parameters(recurse=False)]
        self.calls, self.again = 0, False
        self._used: dict[str, Tensor] = {}
        for name in getattr(original, "__constants__", ()):
            self.__dict__.setdefault(name, getattr(original, name))  # what a user's forward may ask: fc.in_features
        for name, parameter in original._parameters.items():
            self.__dict__[name] = None if parameter is None else parameter.detach().unsqueeze(0)

    def begin(self) -> None:
        """Before a pass."""
        self.calls = 0
        self._used.clear()

    def use(self, name: str) -> Any:
        """A parameter [K, …], or None: the same tensor in each call of a pass, so that its gradient is one."""
        if name not in self._used:
            parameter = self.__dict__.get(name)
            if parameter is None:
                return None
            self._used[name] = taken(parameter, self.lanes)
        return self._used[name]

    def fused(self) -> bool:
        """Counts a call; whether it may take its step by itself."""
        self.calls += 1
        return self.lanes.lr is not None and not self.again


class _Linear(Function):
    """x [K, N, I], W [K, O, I], b [K, O] → [K, N, O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lr: float | None, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.lr = lr
        if bias is None:
            return torch.bmm(x, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, bias = ctx.saved_tensors
        g = grads[0]
        down = torch.bmm(g, weight) if ctx.needs_input_grad[0] else None
        if ctx.lr is not None:
            weight.baddbmm_(g.mT, x, alpha=-ctx.lr)
            if bias is not None:
                bias.sub_(g.sum(1), alpha=ctx.lr)
            return down, None, None, None, None
        return down, torch.bmm(g.mT, x), None if bias is None else g.sum(1), None, None


class Linear(Layer):
    """``nn.Linear``: one batched matrix product."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[K·B, …, I] → [K·B, …, O]."""
        lanes, weight, bias = self.lanes, self.weight, self.bias
        flat = x.reshape(lanes.count, -1, x.shape[-1])
        if self.fused():
            out = _Linear.apply(flat, weight, bias, lanes.lr, lanes.anchor)
        else:
            out = _Linear.apply(flat, self.use("weight"), self.use("bias"), None, lanes.anchor)
        return out.view(*x.shape[:-1], weight.shape[1])  # type: ignore[no-any-return]


class _Rows(Function):
    """Rows of a table [K·V, D]; fused, only the rows that were read are written."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, table: Tensor, still: Tensor | None, lr: float, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(index, still)
        ctx.table, ctx.lr = table, lr
        return table[index]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        index, still = ctx.saved_tensors
        g = grads[0] if still is None else grads[0].masked_fill(still.unsqueeze(-1), 0)
        ctx.table.index_add_(0, index.flatten(), g.reshape(-1, g.shape[-1]), alpha=-ctx.lr)
        return None, None, None, None, None


class Embedding(Layer):
    """``nn.Embedding``: the lanes' tables stand below each other."""

    weight: Tensor

    def __init__(self, original: nn.Embedding, lanes: Lanes) -> None:
        super().__init__(original, lanes)
        self.padding = original.padding_idx

    def forward(self, index: Tensor) -> Tensor:
        """[K·B, …] → [K·B, …, D]."""
        k, words, width = self.weight.shape
        # Beyond its table would be another lane's.
        torch._assert_async(((index >= 0) & (index < words)).all(), f"an index is not one of 0 … {words - 1}")
        offset = torch.arange(k, device=index.device) * words
        rows = (index.reshape(self.lanes.count, -1) + offset[:, None]).view(index.shape)
        still = None if self.padding is None else index == self.padding
        if self.fused():
            table = self.weight.view(k * words, width)
            return _Rows.apply(rows, table, still, self.lanes.lr, self.lanes.anchor)  # type: ignore[no-any-return]
        out = F.embedding(rows, self.use("weight").reshape(k * words, width))
        return out if still is None else torch.where(still.unsqueeze(-1), out.detach(), out)


class Conv(Layer):
    """``nn.Conv1d``, ``2d`` and ``3d``. On a CPU lane after lane, images with channels last; on a GPU as groups."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, original: Any, lanes: Lanes) -> None:
        super().__init__(original, lanes)
        self.around = (original.stride, original.padding, original.dilation)
        self.groups, self.mode = original.groups, original.padding_mode
        self.edges = original._reversed_padding_repeated_twice
        self.convolve: Callable[..., Tensor] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[original.weight.dim()]

    def forward(self, x: Tensor) -> Tensor:
        """[K·B, C, …] → [K·B, O, …]."""
        self.fused()
        weight, bias = self.use("weight"), self.use("bias")
        stride, padding, dilation = self.around
        if self.mode != "zeros":
            x, padding = F.pad(x, self.edges, mode=self.mode), 0
        if x.device.type == "cpu":
            return self._one_by_one(x, weight, bias, stride, padding, dilation)
        return self._as_groups(x, weight, bias, stride, padding, dilation)

    def _one_by_one(self, x: Tensor, weight: Tensor, bias: Tensor | None, *around: Any) -> Tensor:
        # Channels last is what max-pooling and the CPU's convolutions are fast with.
        form = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        x = x.contiguous(memory_format=form)
        biases = [None] * self.lanes.count if bias is None else bias.unbind()
        parts = [
            self.convolve(part, w, b, *around, self.groups)
            for part, w, b in zip(x.chunk(self.lanes.count), weight.unbind(), biases, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _as_groups(self, x: Tensor, weight: Tensor, bias: Tensor | None, *around: Any) -> Tensor:
        k, out = self.lanes.count, weight.shape[1]
        b, size = x.shape[0] // k, x.shape[2:]
        wide = x.view(k, b, x.shape[1], *size).transpose(0, 1).reshape(b, k * x.shape[1], *size)
        flat = None if bias is None else bias.reshape(-1)
        y = self.convolve(wide, weight.flatten(0, 1), flat, *around, self.groups * k)
        return y.view(b, k, out, *y.shape[2:]).transpose(0, 1).reshape(k * b, out, *y.shape[2:])


class LayerNorm(Layer):
    """``nn.LayerNorm``."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, original: nn.LayerNorm, lanes: Lanes) -> None:
        super().__init__(original, lanes)
        self.shape, self.eps = original.normalized_shape, original.eps

    def forward(self, x: Tensor) -> Tensor:
        """[K·B, …, *shape], normalised over ``shape``."""
        self.fused()
        out = F.layer_norm(x, self.shape, None, None, self.eps)
        flat = out.reshape(self.lanes.count, -1, *self.shape)
        return _affine(flat, self.use("weight"), self.use("bias")).view(x.shape)


class GroupNorm(Layer):
    """``nn.GroupNorm``."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, original: nn.GroupNorm, lanes: Lanes) -> None:
        super().__init__(original, lanes)
        self.groups, self.eps = original.num_groups, original.eps

    def forward(self, x: Tensor) -> Tensor:
        """[K·B, C, …]."""
        self.fused()
        out = F.group_norm(x, self.groups, None, None, self.eps)
        flat = out.reshape(self.lanes.count, -1, x.shape[1], x[0, 0].numel())
        weight, bias = (None if p is None else p.unsqueeze(-1) for p in (self.use("weight"), self.use("bias")))
        return _affine(flat, weight, bias).view(x.shape)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x [K, N, …] times weight [K, …] plus bias [K, …]."""
    if weight is not None:
        x = x * weight.unsqueeze(1)
    return x if bias is None else x + bias.unsqueeze(1)
