"""Half: every number in 16 bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from insitu.core import checks
from insitu.core.compressor import Compressor, Draw, numbers
from insitu.core.errors import UpdateError


@dataclass(frozen=True)
class Half(Compressor):
    r"""Numbers are rounded to the nearest 16-bit float, to even where two are as near.

    .. math:: |C(x) - x| \le 2^{-9} |x| \quad \text{(bfloat16)}, \qquad 2^{-11} |x| \quad \text{(float16)}

    dtype     ``"bfloat16"`` has float32's range and two to three digits; ``"float16"`` three to four digits up to
              65504: a larger number is refused, and one below 3e-8 becomes zero
    feedback  rarely needed, as so little is lost; it costs a memory as large as the model on each client
    others    those of :class:`~insitu.core.compressor.Compressor`

    Works on changes and on parameters. Bytes: 2n for a leaf of n elements.

    Numbers in float64 are rounded to float32 first.
    Reference: Micikevicius et al., *Mixed Precision Training*, ICLR 2018; Kalamkar et al., *A Study of BFLOAT16 for
    Deep Learning Training*, 2019.
    """

    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    feedback: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("bfloat16", "float16"), dtype=self.dtype)

    def bytes_of(self, shape: tuple[int, ...], item: int) -> int:
        return 2 * math.prod(shape)

    def pack(
        self, x: np.ndarray, draw: Draw, kept: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        with np.errstate(over="ignore"):
            single = x.astype(np.float32)
            halves = single.astype(np.float16) if self.dtype == "float16" else _bfloat16(single)
        if not np.isfinite(halves if self.dtype == "float16" else _float32(halves)).all():
            raise UpdateError(
                f"a number of size {np.abs(x).max():.6g} does not fit {self.dtype}: "
                + ("use Half('bfloat16')" if self.dtype == "float16" else "leave Half out")
            )
        return {"halves": halves.reshape(-1)}, {}

    def unpack(self, packed: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], draw: Draw) -> np.ndarray:
        n = math.prod(shape)
        if self.dtype == "float16":
            return numbers(packed["halves"], n, np.float16).astype(dtype).reshape(shape)
        return _float32(numbers(packed["halves"], n, np.uint16)).astype(dtype).reshape(shape)

    @classmethod
    def example(cls) -> Half:
        return cls(smallest=0)


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper halves of float32's bits, rounded to nearest even: NumPy has no bfloat16."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _float32(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)
