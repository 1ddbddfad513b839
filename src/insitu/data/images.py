"""Grey-scale images as learners take them: what the readers of the MNIST family share."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.data.files import Files, idx

SHAPES = ("flat", "image", "channel")


def shaped(pixels: np.ndarray, shape: str, scale: bool) -> np.ndarray:
    """Images uint8 [n, h, w] as [n, h·w] (flat), [n, h, w] (image) or [n, 1, h, w] (channel).

    With ``scale`` as float32 in [0, 1]; without it uint8 as they are.
    """
    checks.one_of(SHAPES, shape=shape)
    n, height, width = pixels.shape
    sizes = {"flat": (n, height * width), "image": (n, height, width), "channel": (n, 1, height, width)}
    x = pixels.reshape(sizes[shape])
    # Divided in place: a second float copy of 60,000 images would be 188 MB.
    return np.divide(x, np.float32(255), dtype=np.float32) if scale else x


def read_split(files: Files, split: str, root: Any, shape: str, scale: bool) -> tuple[np.ndarray, np.ndarray]:
    """``(x, y)`` of ``train`` or ``t10k``; y int64 [n]."""
    images, labels = f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz"
    x = shaped(idx(files.read(images, root), images), shape, scale)
    return x, idx(files.read(labels, root), labels).astype(np.int64)
