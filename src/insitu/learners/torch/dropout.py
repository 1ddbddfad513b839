"""Dropout whose masks are a function of (seed, step, call, element), so that every engine draws the same ones.

Under :class:`Masks`, every dropout in a module draws from a counter-based hash instead of torch's generator: the place
of an element in its tensor, the number of the call within the forward pass, the step and the task's seed decide its
fate. Places are hashed by dimension, not as one flat number, so a mask does not change when a batch is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LOW = 0xFFFFFFFF
ODD = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5, 0xB55A4F09)
"""One odd multiplier a dimension: neighbouring places land far apart."""


def mix(x: Tensor) -> Tensor:
    """A bijective hash of 32-bit numbers held in int64 (lowbias32, Wellons 2018)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LOW
    return x ^ (x >> 16)


def keep(shape: torch.Size, p: float, seed: Tensor, step: Tensor, call: int) -> Tensor:
    """A mask of this shape, False with probability p."""
    key = mix((seed & LOW) ^ mix((seed >> 32) & LOW))
    key = mix(key ^ mix((step * 0x9E3779B1 + call * 0x85EBCA77) & LOW))
    place = key
    for dim, size in enumerate(shape):
        line = torch.arange(size, device=seed.device) * ODD[dim % len(ODD)]
        place = place + line.reshape((size,) + (1,) * (len(shape) - dim - 1))
    return mix(place & LOW) >= round(p * 2**32)


def keep_by_lane(shape: torch.Size, p: float, seed: Tensor, step: Tensor, call: int) -> Tensor:
    """:func:`keep` for every lane: seed and step [K] give a mask [K, *shape]."""
    wide = (-1,) + (1,) * len(shape)
    return keep(shape, p, seed.view(wide), step.view(wide), call)


class Masks(TorchFunctionMode):
    """While active, draws every dropout mask from the counters. ``drew`` says whether there was any."""

    def __init__(self, seed: Tensor, step: Tensor) -> None:
        super().__init__()
        self.seed, self.step = seed, step
        self.calls = 0

    @property
    def drew(self) -> bool:
        """Whether a mask was drawn."""
        return self.calls > 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    def mask(self, shape: torch.Size, p: float) -> Tensor:
        """The next mask."""
        self.calls += 1
        return keep(shape, p, self.seed, self.step, self.calls)

    def drop(self, x: Tensor, p: float, shape: torch.Size | None = None) -> Tensor:
        """Inverted dropout: x/(1−p) where the mask keeps, 0 elsewhere."""
        if p == 0:
            return x
        if p == 1:
            return x * 0
        mask = self.mask(x.shape if shape is None else shape, p)
        return torch.where(mask, x / (1 - p), torch.zeros((), dtype=x.dtype, device=x.device))

    def alpha(self, x: Tensor, p: float, shape: torch.Size) -> Tensor:
        """Alpha dropout (Klambauer et al. 2017): keeps mean and variance of SELU activations."""
        if p == 0:
            return x
        low = -1.7580993408473766
        a = ((1 - p) * (1 + p * low**2)) ** -0.5 if p < 1 else 0.0
        dropped = torch.where(self.mask(shape, p), x, torch.full((), low, dtype=x.dtype, device=x.device))
        return dropped * a + (-a * p * low)


def _dropout(
    masks: Masks, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return masks.drop(input, p) if training else input


def _feature_dropout(
    masks: Masks, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return masks.drop(input, p, _channels(input)) if training else input


def _alpha_dropout(
    masks: Masks, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return masks.alpha(input, p, input.shape) if training else input


def _feature_alpha_dropout(
    masks: Masks, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return masks.alpha(input, p, _channels(input)) if training else input


def _channels(x: Tensor) -> torch.Size:
    return torch.Size((*x.shape[:2], *(1,) * (x.dim() - 2)))


def _attention(
    masks: Masks,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    options = {"scale": scale, "enable_gqa": enable_gqa}
    if dropout_p == 0:
        return func(query, key, value, attn_mask, 0.0, is_causal, **options)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return masks.drop(scores.softmax(-1), dropout_p) @ value


def _multi_head(masks: Masks, func: Any, *args: Any, **kwargs: Any) -> Any:
    # Its body calls dropout and attention as names of torch.nn.functional, and no function mode is active inside a
    # handler: so these two names stand for ours while it runs.
    def drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return _dropout(masks, None, input, p, training)

    original = F.scaled_dot_product_attention

    def attend(*a: Any, **k: Any) -> Tensor:
        return _attention(masks, original, *a, **k)

    with _standing_in(dropout=drop, scaled_dot_product_attention=attend):
        return func(*args, **kwargs)


@contextmanager
def _standing_in(**names: Any) -> Iterator[None]:
    before = {name: getattr(F, name) for name in names}
    try:
        for name, value in names.items():
            setattr(F, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(F, name, value)


def _recurrent(masks: Masks, func: Any, *args: Any, **kwargs: Any) -> Any:
    # (input, hx, weights, bias, layers, dropout, train, bidirectional, batch_first); a packed sequence has
    # its batch sizes, a tensor, in second place.
    packed = len(args) != 9 or kwargs or not isinstance(args[8], bool)
    if packed or args[5] == 0 or not args[6] or args[4] == 1:
        return func(*args, **kwargs)
    x, hx, weights, bias, layers, p, train, both, first = args
    pairs = isinstance(hx, (tuple, list))
    states = list(hx) if pairs else [hx]
    directions = 2 if both else 1
    count = len(weights) // layers
    ends: list[list[Tensor]] = [[] for _ in states]
    for layer in range(layers):
        own = [s[layer * directions : (layer + 1) * directions] for s in states]
        x, *last = func(
            x, own if pairs else own[0], weights[layer * count : (layer + 1) * count],
            bias, 1, 0.0, train, both, first,
        )  # fmt: skip
        for kept, state in zip(ends, last, strict=True):
            kept.append(state)
        if layer + 1 < layers:
            x = masks.drop(x, p)
    return (x, *(torch.cat(kept) for kept in ends))


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: lambda masks, func, input, p, train: _dropout(masks, func, input, p, train),
    F.dropout1d: _feature_dropout,
    F.dropout2d: _feature_dropout,
    F.dropout3d: _feature_dropout,
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
    torch.lstm: _recurrent,
    torch.gru: _recurrent,
    torch.rnn_tanh: _recurrent,
    torch.rnn_relu: _recurrent,
}
