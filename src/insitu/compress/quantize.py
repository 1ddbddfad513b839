"""Quantize: every number as one of a few levels, rounded up or down at random so that its mean is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from insitu.core import checks
from insitu.core.compressor import Compressor, Draw, numbers


@dataclass(frozen=True)
class Quantize(Compressor):
    r"""Groups of g neighbouring numbers share a scale; each becomes a whole number of steps, by stochastic rounding.

    .. math:: C(x)_i = s \lfloor x_i / s + u_i \rfloor, \qquad s = \max_j |x_j| / (2^{b-1} - 1), \quad u_i \sim U[0, 1)

    so that :math:`\mathrm{E}\, C(x) = x` and no number is off by more than one step s.

    bits      8: 255 levels; 4: 15 levels, two numbers a byte
    group     g, the numbers that share a scale: fewer lose less and cost more
    feedback  not needed, as errors cancel in the mean; with it, 4 bits come nearer to no compression at all
    others    those of :class:`~insitu.core.compressor.Compressor`

    Works on changes and on parameters. Bytes: ⌈n·bits/8⌉ + w·⌈n/g⌉ for a leaf of n elements; w is 4, and 8 for a leaf
    in float64.

    Reference: Alistarh et al., *QSGD: Communication-Efficient SGD via Gradient Quantization*, NeurIPS 2017, section 4
    (buckets, scaled by their largest element); deviation: levels have a fixed width, where QSGD codes them by Elias.
    """

    bits: Literal[8, 4] = 8
    group: int = 256
    feedback: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of((8, 4), bits=self.bits)
        checks.count(group=self.group)

    def bytes_of(self, shape: tuple[int, ...], item: int) -> int:
        n = math.prod(shape)
        return -(-n * self.bits // 8) + item * -(-n // self.group)

    def pack(
        self, x: np.ndarray, draw: Draw, kept: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        flat, most = x.reshape(-1), 2 ** (self.bits - 1) - 1
        steps = np.maximum.reduceat(np.abs(flat), np.arange(0, flat.size, self.group)) / flat.dtype.type(most)
        wide = self._wide(steps, flat.size)
        scaled = np.divide(flat, wide, out=np.zeros_like(flat), where=wide > 0)
        levels = np.floor(scaled + draw().random(flat.size, dtype=flat.dtype))
        # The largest is all of its levels by definition, and one too many by a rounding.
        levels = np.clip(levels, -most, most).astype(np.int8)
        return {"levels": levels if self.bits == 8 else _in_pairs(levels), "steps": steps}, {}

    def unpack(self, packed: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], draw: Draw) -> np.ndarray:
        n = math.prod(shape)
        steps = numbers(packed["steps"], -(-n // self.group), dtype)
        if self.bits == 8:
            levels = numbers(packed["levels"], n, np.int8)
        else:
            levels = _alone(numbers(packed["levels"], -(-n // 2), np.uint8), n)
        return (levels.astype(dtype) * self._wide(steps, n)).reshape(shape)

    def _wide(self, steps: np.ndarray, n: int) -> np.ndarray:
        return np.repeat(steps, self.group)[:n]

    @classmethod
    def example(cls) -> Quantize:
        return cls(bits=4, group=16, smallest=0)


def _in_pairs(levels: np.ndarray) -> np.ndarray:
    """Levels from -7 to 7, two a byte, the first one in its upper half."""
    shifted = (np.append(levels, np.zeros(levels.size % 2, levels.dtype)) + 8).astype(np.uint8)
    return shifted[0::2] << 4 | shifted[1::2]


def _alone(pairs: np.ndarray, n: int) -> np.ndarray:
    return np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[:n].astype(np.int8) - 8
