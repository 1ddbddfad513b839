"""Layers of a chain that look at neighbouring places: convolutions and pooling. CPU and GPU alike.

Shapes: [n, B, C, …]. torch's convolutions know one set of weights, so they are called lane after lane; each lane's
activations are then in the cache when they are needed. What comes out of a convolution on a CPU is written with
channels last, in which pooling takes a tenth of the time; convolutions themselves are faster with channels first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from insitu.learners.torch.chain.links import Link, Memory


def channels_last(memory: Memory, name: object, shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory [K, B, C, H, W] whose channels lie next to each other; other shapes as they are."""
    if len(shape) != 5:
        return memory.take(name, shape, like)
    k, b, c, h, w = shape
    return memory.take(name, (k, b, h, w, c), like).permute(0, 1, 4, 2, 3)


class Conv(Link):
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` with zero padding."""

    owns_output = True

    def __init__(self, place: int, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, prefix: str) -> None:
        super().__init__(place)
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise ValueError("a convolution that pads by itself")
        self._module = module
        self._around = (list(module.stride), list(module.padding), list(module.dilation), False)
        self._rest = ([0] * len(module.stride), module.groups)
        self.biased = module.bias is not None
        self.names = (f"{prefix}weight", *([f"{prefix}bias"] if self.biased else ()))

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        if len(before) != len(self._module.stride) + 1 or before[0] != self._module.in_channels:
            raise ValueError(f"a convolution on examples of shape {list(before)}")
        module = self._module
        sizes = zip(before[1:], module.kernel_size, module.stride, module.padding, module.dilation, strict=True)
        places = tuple((size + 2 * int(p) - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in sizes)
        if min(places) < 1:
            raise ValueError(f"a kernel larger than examples of shape {list(before)}")
        self.after = (module.out_channels, *places)
        return self.after

    def hold(self, parameters: Mapping[str, Tensor], x: Tensor, memory: Memory) -> Tensor:
        self._weights = parameters[self.names[0]].unbind()
        self._biases = parameters[self.names[1]].unbind() if self.biased else [None] * len(self._weights)
        self._out = channels_last(memory, (self.place, "out"), (*x.shape[:2], *self.after), x)
        self._down = memory.take((self.place, "down"), x.shape, x) if self.deep else None
        return self._out

    def narrow(self, n: int) -> None:
        self.out = self._out[:n]
        self.down = None if self._down is None else self._down[:n]

    def forward(self, x: Tensor) -> Tensor:
        self.x = [part.contiguous() for part in x.unbind()]
        for part, weight, bias, out in zip(self.x, self._weights, self._biases, self.out.unbind(), strict=False):
            out.copy_(torch.convolution(part, weight, bias, *self._around, *self._rest))
        return self.out

    def backward(self, g: Tensor, lr: float) -> Tensor | None:
        sizes = [self._module.out_channels] if self.biased else None
        downs = [None] * len(g) if self.down is None else self.down.unbind()
        for x, part, weight, bias, down in zip(self.x, g.unbind(), self._weights, self._biases, downs, strict=False):
            mask = [down is not None, True, self.biased]
            deep, change, shift = torch.ops.aten.convolution_backward(
                part.contiguous(), x, weight, sizes, *self._around, *self._rest, mask
            )
            if down is not None:
                down.copy_(deep)
            weight.sub_(change, alpha=lr)
            if bias is not None:
                bias.sub_(shift, alpha=lr)
        return self.down


class MaxPool(Link):
    """``nn.MaxPool2d``."""

    def __init__(self, place: int, module: nn.MaxPool2d) -> None:
        super().__init__(place)
        if module.return_indices:
            raise ValueError("pooling that tells places")
        pairs = (module.kernel_size, module.stride, module.padding, module.dilation)
        self._around = [[p, p] if isinstance(p, int) else list(p) for p in pairs]
        self._ceil = module.ceil_mode
        self._module = module

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        if len(before) != 3:
            raise ValueError(f"pooling on examples of shape {list(before)}")
        # On the CPU: pooling on the meta device imports a computer algebra system first, a quarter of a second.
        self.after = tuple(self._module(torch.zeros(1, *before)).shape[1:])
        return self.after

    def hold(self, parameters: Mapping[str, Tensor], x: Tensor, memory: Memory) -> Tensor:
        shape = (*x.shape[:2], *self.after)
        self._out = channels_last(memory, (self.place, "out"), shape, x)
        whole = torch.empty(0, dtype=torch.int64, device=x.device)
        self._where = channels_last(memory, (self.place, "where"), shape, whole)
        self._down = channels_last(memory, (self.place, "down"), x.shape, x)
        return self._out

    def narrow(self, n: int) -> None:
        self.out = self._out[:n]
        self._flat = [a[:n].flatten(0, 1) for a in (self._out, self._where, self._down)]
        self.down = self._down[:n]

    def forward(self, x: Tensor) -> Tensor:
        self.x = x.flatten(0, 1)
        out, where, _ = self._flat
        torch.ops.aten.max_pool2d_with_indices.out(self.x, *self._around, self._ceil, out=out, indices=where)
        return self.out

    def backward(self, g: Tensor, lr: float) -> Tensor | None:
        if not self.deep:
            return None
        _, where, down = self._flat
        torch.ops.aten.max_pool2d_with_indices_backward.grad_input(
            g.flatten(0, 1), self.x, *self._around, self._ceil, where, grad_input=down
        )
        return self.down
