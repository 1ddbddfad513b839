"""TopK: the k largest numbers of each leaf, and where they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from insitu.core import arrays, checks
from insitu.core.compressor import Compressor, Draw, numbers

WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@dataclass(frozen=True)
class TopK(Compressor):
    r"""Of each leaf only the k elements of largest size are told; of those of one size the first.

    .. math:: C(x)_i = x_i \text{ if } |x_i| \text{ is among the } k \text{ largest, else } 0

    fraction  k/n, the share of elements that are told: 0.01 is usual; at least one element is
    feedback  needed: without it an element that is never among the largest is never learnt
    others    those of :class:`~insitu.core.compressor.Compressor`

    For changes of a model. Bytes: w·k + I(n, k) for a leaf of n elements, k = max(1, round(fraction·n)); w is 4, and 8
    for a leaf in float64. The places cost the least of a bitmap and of blocks with a count each and an offset within
    its block for each element, of one, two or four bytes:
    :math:`I(n, k) = \min(\lceil n/8 \rceil, \; \min_{v \in 1, 2, 4} v (k + \lceil n / (256^v - 1) \rceil))`.
    At 1 % that is about 1.4 bytes a place, where a number of 32 bits takes 4.

    References: Stich, Cordonnier and Jaggi, *Sparsified SGD with Memory*, NeurIPS 2018; Lin et al., *Deep Gradient
    Compression*, ICLR 2018. Deviation: no momentum correction, warm-up or masking of DGC.
    """

    fraction: float = 0.01
    changes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.share(fraction=self.fraction)

    def bytes_of(self, shape: tuple[int, ...], item: int) -> int:
        n = math.prod(shape)
        k = self._k(n)
        return item * k + places_bytes(n, k)

    def pack(
        self, x: np.ndarray, draw: Draw, kept: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        flat = x.reshape(-1)
        places = largest(flat, self._k(flat.size))
        return {"values": flat[places], **pack_places(places, flat.size)}, {}

    def unpack(self, packed: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], draw: Draw) -> np.ndarray:
        n = math.prod(shape)
        k = self._k(n)
        flat = np.zeros(n, dtype)
        flat[unpack_places(packed, n, k)] = numbers(packed["values"], k, dtype)
        return flat.reshape(shape)

    def _k(self, n: int) -> int:
        return max(1, round(self.fraction * n))

    @classmethod
    def example(cls) -> TopK:
        return cls(fraction=0.2, smallest=0)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """The places [k] of the k elements of largest size, ascending; of those of one size the first."""
    sizes = np.abs(x)
    least = np.partition(sizes, len(x) - k)[len(x) - k]
    above = np.flatnonzero(sizes > least)
    level = np.flatnonzero(sizes == least)[: k - len(above)]
    return np.sort(np.concatenate([above, level]))


def places_bytes(n: int, k: int) -> int:
    """I(n, k)."""
    return min(-(-n // 8), *(_blocks_bytes(n, k, width) for width in WIDTHS))


def pack_places(places: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Ascending places out of n, in the fewest bytes."""
    k = len(places)
    if -(-n // 8) == places_bytes(n, k):
        bits = np.zeros(n, bool)
        bits[places] = True
        return {"bitmap": np.packbits(bits)}
    width = min(WIDTHS, key=lambda width: _blocks_bytes(n, k, width))
    # One less than the offsets there are, so that even the count of a full block is a number of this width.
    size = 256**width - 1
    counts = np.bincount(places // size, minlength=-(-n // size))
    return {"counts": counts.astype(WIDTHS[width]), "offsets": (places % size).astype(WIDTHS[width])}


def unpack_places(packed: Mapping[str, Any], n: int, k: int) -> np.ndarray:
    """The places [k] again. Raises ValueError or IndexError where they are not k places out of n."""
    if "bitmap" in packed:
        places = np.flatnonzero(np.unpackbits(numbers(packed["bitmap"], -(-n // 8), np.uint8), count=n))
    else:
        width = arrays.asnumpy(packed["offsets"]).dtype.itemsize
        size = 256**width - 1
        offsets = numbers(packed["offsets"], k, WIDTHS[width])
        counts = numbers(packed["counts"], -(-n // size), WIDTHS[width])
        starts = np.repeat(np.arange(len(counts), dtype=np.int64) * size, counts)
        if len(starts) != k:
            raise ValueError(f"{len(starts)} places in place of {k}")
        places = starts + offsets
    if len(places) != k:
        raise ValueError(f"{len(places)} places in place of {k}")
    return places


def _blocks_bytes(n: int, k: int, width: int) -> int:
    return width * (k + -(-n // (256**width - 1)))
