"""The layers of a chain, for many clients at once: each knows its forward pass, its gradient and its step.

Shapes: K lanes, of which the first n are at work, B examples a lane: activations are [n, B, …], parameters [K, …].
Memory is taken once for K lanes and used again in every step: with small models an allocation costs as much as the
arithmetic, and with large ones fresh memory costs a page fault every four kilobytes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Memory:
    """One block of memory for each name, as large as the largest that was asked for."""

    def __init__(self) -> None:
        self._held: dict[tuple[Any, ...], Tensor] = {}

    def take(self, name: Any, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory of this shape; whatever was there before stands in it."""
        key, size = (name, like.dtype, like.device), math.prod(shape)
        if key not in self._held or self._held[key].numel() < size:
            self._held[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._held[key][:size].view(*shape)


class Link(ABC):
    """One layer. ``hold`` is called once a stretch of steps, ``narrow`` when fewer lanes are at work than before."""

    names: tuple[str, ...] = ()
    """Its parameters, by their names in the module."""
    owns_output = False
    """Whether its output is memory of its own that it does not need for its gradient: the next may write into it."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.deep = False
        """Whether the gradient by its input is asked for."""

    @abstractmethod
    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one example's output. Raises ValueError where it cannot take this input."""

    def hold(self, parameters: Mapping[str, Tensor], x: Tensor, memory: Memory) -> Tensor:
        """Takes parameters [K, …] and memory for inputs like ``x`` [K, B, …]; returns its output's memory."""
        return x

    @abstractmethod
    def narrow(self, n: int) -> None:
        """From here on the first n lanes are at work."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [n, B, …] → [n, B, …]."""

    @abstractmethod
    def backward(self, g: Tensor, lr: float) -> Tensor | None:
        """The step of its parameters, and the gradient by its input where that is asked for."""


class Linear(Link):
    """``nn.Linear`` on [n, B, I]: three batched products, the last of which is the weight's step."""

    owns_output = True

    def __init__(self, place: int, module: nn.Linear, prefix: str) -> None:
        super().__init__(place)
        self.sizes = module.in_features, module.out_features
        self.biased = module.bias is not None
        self.names = (f"{prefix}weight", *([f"{prefix}bias"] if self.biased else ()))

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        if before != (self.sizes[0],):
            raise ValueError(f"a linear layer on examples of shape {list(before)}")
        return (self.sizes[1],)

    def hold(self, parameters: Mapping[str, Tensor], x: Tensor, memory: Memory) -> Tensor:
        k, b = x.shape[:2]
        self._weight = parameters[self.names[0]]
        self._bias = parameters[self.names[1]] if self.biased else None
        self._out = memory.take((self.place, "out"), (k, b, self.sizes[1]), x)
        self._down = memory.take((self.place, "down"), (k, b, self.sizes[0]), x) if self.deep else None
        self._sum = memory.take((self.place, "sum"), (k, self.sizes[1]), x)
        return self._out

    def narrow(self, n: int) -> None:
        self.weight = self._weight[:n]
        self.turned = self.weight.mT
        self.bias = None if self._bias is None else self._bias[:n]
        self.row = None if self.bias is None else self.bias.unsqueeze(1)
        self.out, self.sum = self._out[:n], self._sum[:n]
        self.down = None if self._down is None else self._down[:n]

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        if self.row is None:
            return torch.bmm(x, self.turned, out=self.out)
        return torch.baddbmm(self.row, x, self.turned, out=self.out)

    def backward(self, g: Tensor, lr: float) -> Tensor | None:
        down = None if self.down is None else torch.bmm(g, self.weight, out=self.down)
        self.weight.baddbmm_(g.mT, self.x, alpha=-lr)
        if self.bias is not None:
            torch.sum(g, 1, out=self.sum)
            self.bias.sub_(self.sum, alpha=lr)
        return down


class Squash(Link):
    """An activation whose derivative is known from its output, [n, B, …] → [n, B, …]."""

    def __init__(self, place: int, onto: Callable[..., Tensor], slope: Callable[..., Tensor], inside: bool) -> None:
        """``onto(x, out=…)``; ``slope(g, y, grad_input=…)``; ``inside``: it may write into its input."""
        super().__init__(place)
        self._onto, self._slope, self._inside = onto, slope, inside

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        return before

    def hold(self, parameters: Mapping[str, Tensor], x: Tensor, memory: Memory) -> Tensor:
        self._out = x if self._inside else memory.take((self.place, "out"), x.shape, x)
        return self._out

    def narrow(self, n: int) -> None:
        self.out = self._out[:n]

    def forward(self, x: Tensor) -> Tensor:
        return self._onto(x, self.out)

    def backward(self, g: Tensor, lr: float) -> Tensor | None:
        return self._slope(g, self.out) if self.deep else None


def _relu(x: Tensor, out: Tensor) -> Tensor:
    return torch.clamp_min(x, 0, out=out)


def _relu_slope(g: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=g)


def _tanh(x: Tensor, out: Tensor) -> Tensor:
    return torch.tanh(x, out=out)


def _tanh_slope(g: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward.grad_input(g, y, grad_input=g)


def _sigmoid(x: Tensor, out: Tensor) -> Tensor:
    return torch.sigmoid(x, out=out)


def _sigmoid_slope(g: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward.grad_input(g, y, grad_input=g)


SQUASHES: dict[type[nn.Module], tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    nn.ReLU: (_relu, _relu_slope),
    nn.Tanh: (_tanh, _tanh_slope),
    nn.Sigmoid: (_sigmoid, _sigmoid_slope),
}


class Reshape(Link):
    """Another shape for the same numbers."""

    def __init__(self, place: int, module: nn.Flatten | nn.Unflatten | nn.Identity) -> None:
        super().__init__(place)
        self._module = module

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        self.before, self.after = before, tuple(self._module(torch.empty(1, *before, device="meta")).shape[1:])
        if math.prod(self.after) != math.prod(before):
            raise ValueError("it reshapes the batch")
        return self.after

    def hold(self, parameters: Mapping[str, Tensor], x: Tensor, memory: Memory) -> Tensor:
        return self.forward(x)

    def narrow(self, n: int) -> None:
        """Nothing is held by lane."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], *self.after)

    def backward(self, g: Tensor, lr: float) -> Tensor | None:
        return g.reshape(*g.shape[:2], *self.before) if self.deep else None
