"""Fashion-MNIST: 60,000 + 10,000 images of clothes in ten classes, without natural clients."""

from __future__ import annotations

from typing import Any

from insitu.data.dataset import DataSet
from insitu.data.files import Files
from insitu.data.images import read_split

FILES = Files(
    "fashion-mnist",
    "https://github.com/zalandoresearch/fashion-mnist",
    {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
)
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def fashion_mnist(root: Any = None, *, shape: str = "flat", scale: bool = True) -> DataSet:
    """Articles of clothing, 6,000 of each class to train and 1,000 to test.

    Args:
        root: the folder that holds ``fashion-mnist/``; see :mod:`insitu.data.files`.
        shape: ``flat`` [n, 784], ``image`` [n, 28, 28] or ``channel`` [n, 1, 28, 28].
        scale: float32 in [0, 1] (188 MB); False: uint8 0 to 255 (47 MB).

    Returns:
        x [60000, …], y int64 0 to 9, no keys: make clients with a partition.

    Raises:
        DataError: a file is absent or damaged.

    Source: Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: a novel image dataset", MIT licence.
    """
    x, y = read_split(FILES, "train", root, shape, scale)
    x_test, y_test = read_split(FILES, "t10k", root, shape, scale)
    return DataSet("fashion_mnist", x, y, None, x_test, y_test, classes=CLASSES)
