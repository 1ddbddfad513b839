"""MNIST with the writer of every digit: 60,000 + 10,000 images of handwritten digits, 539 natural clients."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.data.dataset import DataSet
from insitu.data.files import Files, idx
from insitu.data.images import read_split

FILES = Files(
    "mnist",
    "https://yann.lecun.com/exdb/mnist (images) and https://github.com/facebookresearch/qmnist (writers)",
    {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "qmnist-train-labels-idx2-int.gz": "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f",
        "qmnist-test-labels-idx2-int.gz": "9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06",
    },
)
_WRITER = 2
"""The column of QMNIST's label files that holds the NIST id of the writer."""


def mnist(root: Any = None, *, shape: str = "flat", scale: bool = True) -> DataSet:
    """Handwritten digits; the natural client is the writer: 539 in the training part, 19 to 131 images each.

    Args:
        root: the folder that holds ``mnist/``; see :mod:`insitu.data.files`.
        shape: ``flat`` [n, 784], ``image`` [n, 28, 28] or ``channel`` [n, 1, 28, 28].
        scale: float32 in [0, 1] (188 MB); False: uint8 0 to 255 (47 MB).

    Returns:
        x [60000, …], y int64 0 to 9, keys int64 (NIST writer ids); the test part's 297 writers are others.

    Raises:
        DataError: a file is absent or damaged.

    Source: LeCun et al. (1998), CC BY-SA 3.0; writers: Yadav and Bottou (2019), "Cold case: the lost MNIST
    digits".
    """
    x, y = read_split(FILES, "train", root, shape, scale)
    x_test, y_test = read_split(FILES, "t10k", root, shape, scale)
    # Further rows of the test file belong to 50,000 images of QMNIST that MNIST lacks.
    writers, writers_test = _writers("train", root)[: len(y)], _writers("test", root)[: len(y_test)]
    digits = tuple(str(digit) for digit in range(10))
    return DataSet("mnist", x, y, writers, x_test, y_test, writers_test, classes=digits)


def _writers(split: str, root: Any) -> np.ndarray:
    name = f"qmnist-{split}-labels-idx2-int.gz"
    return idx(FILES.read(name, root), name)[:, _WRITER].astype(np.int64)
