"""A tree from one rank to another: small parts as :mod:`insitu.core.wire` writes them, large arrays as they lie.

A frame is eight bytes (the head's length), the head, and then each large array in its own message, read straight into
its place: nothing large is copied into one buffer, hashed, or pickled. The ranks of a run trust each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from insitu.core import arrays, wire
from insitu.core.errors import WireError

BESIDE = 1024
"""Bytes from which an array travels beside the head."""
_MARK = "\x00beside"
LENGTH = 8


class Sending:
    """A frame under way; ``size`` is its bytes. ``wait`` returns when all of it has left."""

    def __init__(self, value: Any, to: int) -> None:
        beside: list[Tensor] = []
        head = wire.encode(_without(value, beside))
        parts = [
            torch.tensor([len(head)], dtype=torch.int64),
            torch.frombuffer(bytearray(head), dtype=torch.uint8),
            *beside,
        ]
        self.size = sum(part.nbytes for part in parts)
        self._parts = parts  # they must not be let go of before they have left
        self._works = [work for part in parts if (work := dist.isend(part, to)) is not None]

    def wait(self) -> None:
        """Raises RuntimeError where the other rank is gone, or does not take it in time."""
        for work in self._works:
            work.wait()


def receive(sender: int) -> tuple[Any, int]:
    """The next tree from this rank, and its bytes."""
    length = torch.empty(1, dtype=torch.int64)
    dist.recv(length, sender)
    head = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(head, sender)
    size = LENGTH + len(head)

    def fill(node: Any) -> Any:
        nonlocal size
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            if len(node) == 4 and isinstance(node[0], str) and node[0] == _MARK:
                array, raw = _empty(*node[1:])
                dist.recv(raw, sender)
                size += raw.nbytes
                return array
            return type(node)(fill(value) for value in node)
        return node

    return fill(wire.decode(head.numpy().tobytes())), size


def _without(node: Any, beside: list[Tensor]) -> Any:
    """The tree with a note in place of each large array, and these arrays' bytes in order."""
    if isinstance(node, Mapping):
        return {key: _without(value, beside) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_without(value, beside) for value in node)
    if arrays.is_torch(node):
        if node.nbytes >= BESIDE and not node.is_sparse:
            flat = node.detach().cpu().contiguous().view(-1)
            beside.append(flat.view(torch.uint8))
            return (_MARK, "torch", str(node.dtype).removeprefix("torch."), list(node.shape))
    elif isinstance(node, np.ndarray) and node.nbytes >= BESIDE and node.dtype.kind in "biufc":
        flat = torch.from_numpy(np.array(node, order="C").reshape(-1).view(np.uint8))
        beside.append(flat)
        return (_MARK, "numpy", node.dtype.str, list(node.shape))
    return node


def _empty(kind: str, dtype: str, shape: list[int]) -> tuple[Any, Tensor]:
    """An array of this form, and its memory as bytes."""
    if kind == "torch":
        form = getattr(torch, dtype, None)
        if not isinstance(form, torch.dtype):
            raise WireError(f"another rank sent a tensor of dtype {dtype!r}, which this torch does not know")
        tensor = torch.empty(shape, dtype=form)
        return tensor, tensor.view(-1).view(torch.uint8)
    array = np.empty(math.prod(shape), dtype=np.dtype(dtype))
    return array.reshape(shape), torch.from_numpy(array.view(np.uint8))
