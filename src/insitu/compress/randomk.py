"""RandomK: k numbers of each leaf, drawn anew in every round; where they stand need not be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from insitu.core import checks
from insitu.core.compressor import Compressor, Draw, numbers
from insitu.core.errors import PlanError


@dataclass(frozen=True)
class RandomK(Compressor):
    r"""k elements of each leaf are told, drawn without replacement from (run seed, round, client, leaf).

    .. math:: C(x)_i = x_i \text{ if } i \in S, \text{ else } 0, \qquad S \sim \text{uniform}, \quad |S| = k

    Both sides draw the same places, so these cost nothing.

    fraction  k/n, the share of elements that are told; at least one element is
    unbiased  told elements are multiplied by n/k, so that :math:`\mathrm{E}\, C(x) = x`: for a single shot without
              feedback; as feedback tells everything in the end, both together are refused
    feedback  usual; every element waits n/k rounds for its turn, in the mean
    others    those of :class:`~insitu.core.compressor.Compressor`

    For changes of a model. Bytes: w·k for a leaf of n elements, k = max(1, round(fraction·n)); w is 4, and 8 for a leaf
    in float64.

    Reference: Stich, Cordonnier and Jaggi, *Sparsified SGD with Memory*, NeurIPS 2018; unbiased: Wangni et al.,
    *Gradient Sparsification for Communication-Efficient Distributed Optimization*, NeurIPS 2018, with equal chances.
    """

    fraction: float = 0.01
    unbiased: bool = False
    changes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.share(fraction=self.fraction)
        checks.one_of((True, False), unbiased=self.unbiased)
        if self.unbiased and self.feedback:
            raise PlanError(
                "unbiased=True tells k elements n/k times as large, and feedback=True would take that back in the next"
                " round: leave unbiased out, or say feedback=False"
            )

    def bytes_of(self, shape: tuple[int, ...], item: int) -> int:
        return item * self._k(math.prod(shape))

    def pack(
        self, x: np.ndarray, draw: Draw, kept: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        flat = x.reshape(-1)
        return {"values": flat[self._places(flat.size, draw)]}, {}

    def unpack(self, packed: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], draw: Draw) -> np.ndarray:
        n = math.prod(shape)
        values = numbers(packed["values"], self._k(n), dtype)
        flat = np.zeros(n, dtype)
        flat[self._places(n, draw)] = values * dtype.type(n / len(values)) if self.unbiased else values
        return flat.reshape(shape)

    def _k(self, n: int) -> int:
        return max(1, round(self.fraction * n))

    def _places(self, n: int, draw: Draw) -> np.ndarray:
        return np.sort(draw().choice(n, self._k(n), replace=False, shuffle=False))

    @classmethod
    def example(cls) -> RandomK:
        return cls(fraction=0.2, smallest=0)
