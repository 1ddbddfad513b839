"""Signs: one bit a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from insitu.core.compressor import Compressor, Draw, numbers


@dataclass(frozen=True)
class Signs(Compressor):
    r"""Of each leaf the signs are told, and the mean size of its elements.

    .. math:: C(x) = \frac{\lVert x \rVert_1}{n} \, \mathrm{sign}(x), \qquad \mathrm{sign}(0) = 1

    feedback  needed: without it descent may stop far from the optimum, or go up
    others    those of :class:`~insitu.core.compressor.Compressor`

    For changes of a model. Bytes: ⌈n/8⌉ + w for a leaf of n elements; w is 4, and 8 for a leaf in float64.

    References: Karimireddy et al., *Error Feedback Fixes SignSGD and other Gradient Compression Schemes*, ICML 2019
    (EF-signSGD, scaled leaf by leaf); Bernstein et al., *signSGD*, ICML 2018. Deviation: updates are averaged as they
    are unpacked, there is no vote of the majority.
    """

    changes_only: ClassVar[bool] = True

    def bytes_of(self, shape: tuple[int, ...], item: int) -> int:
        return -(-math.prod(shape) // 8) + item

    def pack(
        self, x: np.ndarray, draw: Draw, kept: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return {"bits": np.packbits(x.reshape(-1) >= 0), "size": np.asarray(np.abs(x).mean(dtype=x.dtype))}, {}

    def unpack(self, packed: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], draw: Draw) -> np.ndarray:
        n = math.prod(shape)
        size = numbers(packed["size"], 1, dtype)
        bits = np.unpackbits(numbers(packed["bits"], -(-n // 8), np.uint8), count=n)
        return np.where(bits, size, -size).reshape(shape)

    @classmethod
    def example(cls) -> Signs:
        return cls(smallest=0)
