"""PowerSGD: every matrix as a product of two thin ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from insitu.core import checks
from insitu.core.compressor import Compressor, Draw, numbers


@dataclass(frozen=True)
class PowerSGD(Compressor):
    r"""One step of the power method a round, from where the last round's ended.

    .. math:: P = \mathrm{orthonormal}(M Q), \qquad Q \leftarrow M^\top P, \qquad C(M) = P Q^\top

    A leaf [n, …] is the matrix M [n, m], m the product of its other dimensions; P is [n, r], Q [m, r]. Q stays in the
    client's memory and is drawn from the seed in its first round; so is a column that has become zero.

    rank      r: 1, 2 or 4 are usual
    feedback  needed: a product of low rank leaves out the same directions again and again
    others    those of :class:`~insitu.core.compressor.Compressor`

    For changes of a model. Biases and norms (leaves of one dimension) travel as they are, and so does a matrix with no
    more elements than its factors. Bytes: w·r·(n + m) a matrix; w is 4, and 8 for a leaf in float64.

    Reference: Vogels, Karimireddy and Jaggi, *PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization*, NeurIPS 2019, algorithms 1 and 2. Deviation: in the paper workers average P before Q is computed, so
    that all have one pair of factors; here each client factors its own matrix and the server averages the products,
    whose mean has more than rank r. A client tells the same bytes, in one message instead of two.
    """

    rank: int = 2
    changes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(rank=self.rank)

    def bytes_of(self, shape: tuple[int, ...], item: int) -> int:
        n, m = _matrix(shape)
        return item * self.rank * (n + m) if len(shape) > 1 else item * n

    def pack(
        self, x: np.ndarray, draw: Draw, kept: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        matrix_NM = x.reshape(_matrix(x.shape))
        p_NR = orthonormal(matrix_NM @ self._start(matrix_NM, draw, kept))
        q_MR = matrix_NM.T @ p_NR
        return {"p": p_NR, "q": q_MR}, {"q": q_MR}

    def unpack(self, packed: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], draw: Draw) -> np.ndarray:
        n, m = _matrix(shape)
        p_NR = numbers(packed["p"], n * self.rank, dtype).reshape(n, self.rank)
        q_MR = numbers(packed["q"], m * self.rank, dtype).reshape(m, self.rank)
        return (p_NR @ q_MR.T).reshape(shape)

    def _start(self, matrix_NM: np.ndarray, draw: Draw, kept: Mapping[str, Any]) -> np.ndarray:
        """Q of the last round; drawn where there is none, or where a column says nothing."""
        shape = (matrix_NM.shape[1], self.rank)
        q_MR = np.asarray(kept["q"]) if "q" in kept else np.zeros(shape, matrix_NM.dtype)
        if (empty_R := ~q_MR.any(axis=0)).any():
            q_MR = np.where(empty_R, draw().standard_normal(shape, dtype=matrix_NM.dtype), q_MR)
        return q_MR

    @classmethod
    def example(cls) -> PowerSGD:
        return cls(rank=1, smallest=0)


def orthonormal(p_NR: np.ndarray) -> np.ndarray:
    """The columns made orthonormal one after another (Gram–Schmidt); one that adds nothing to those before is zero.

    What is left of such a column is rounding, which would show another direction on every machine.
    """
    columns: list[np.ndarray] = []
    for column in p_NR.T:
        before = np.linalg.norm(column)
        for other in columns:
            column = column - other * (other @ column)
        after = np.linalg.norm(column)
        says = after > 1000 * np.finfo(p_NR.dtype).eps * before
        columns.append(column / after if says else np.zeros_like(column))
    return np.stack(columns, axis=1)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)
