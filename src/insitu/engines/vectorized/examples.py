"""Where a wave's examples come from: from all data in one piece, by row, or from its clients' own columns, joined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from insitu.core import arrays, tree
from insitu.core.descent import Job
from insitu.core.protocols import GradientLearner
from insitu.core.types import Data

COPY = 2**26
"""Bytes of all data in the learner's own dtypes, where those are others, that are kept beside the data."""
GPU_SHARE = 0.25
"""The share of a GPU's free memory that all data may take."""

Columns = Mapping[str, Any]
"""``x`` and ``y``: tensors [n, …], or trees of them."""


class Shelf:
    """Memory that waves write to one after another: fresh memory costs a page fault every four kilobytes."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor, device: torch.device) -> Tensor:
        """Memory of this shape and the dtype of ``like``; it is whatever the last wave left there."""
        key, size = (name, like.dtype, device), math.prod(shape)
        if key not in self._held or self._held[key].numel() < size:
            self._held[key] = torch.empty(size, dtype=like.dtype, device=device)
        return self._held[key][:size].view(*shape)


def sent(array: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """An array on the device. A GPU fetches it by itself, out of memory that stays where it is: nobody waits."""
    here = torch.from_numpy(array)
    if device.type != "cuda":
        return here.to(device, dtype)
    there = here.pin_memory().to(device, non_blocking=True)
    return there if dtype is None else there.to(dtype)


class Examples(Protocol):
    """Some clients' examples."""

    def of(self, jobs: Sequence[Job], shelf: Shelf, device: torch.device) -> tuple[Columns, list[np.ndarray]]:
        """Columns on the device, and the rows of each job's examples in them, in the order in which it uses them."""
        ...


class Whole:
    """All data in one piece: nothing is copied but the rows of each step."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def of(self, jobs: Sequence[Job], shelf: Shelf, device: torch.device) -> tuple[Columns, list[np.ndarray]]:
        """See :class:`Examples`."""
        return self.columns, [job.client.data.rows[job.batches.order] for job in jobs]  # type: ignore[index]


class Joined:
    """Each client's own columns, by its id."""

    def __init__(self, parts: Mapping[str, Columns]) -> None:
        self.parts = parts

    def of(self, jobs: Sequence[Job], shelf: Shelf, device: torch.device) -> tuple[Columns, list[np.ndarray]]:
        """See :class:`Examples`."""
        parts = [self.parts[job.task.client] for job in jobs]
        columns = {name: _joint(name, [part[name] for part in parts], shelf, device) for name in parts[0]}
        sizes = [len(job.client.data) for job in jobs]
        return columns, [job.batches.order + n for job, n in zip(jobs, np.cumsum([0, *sizes[:-1]]), strict=True)]


def _joint(name: str, parts: Sequence[Any], shelf: Shelf, device: torch.device) -> Any:
    """The clients' columns below each other."""
    if isinstance(parts[0], Mapping):
        return {key: _joint(f"{name}/{key}", [part[key] for part in parts], shelf, device) for key in parts[0]}
    if len(parts) == 1:
        return parts[0].to(device)
    rows = sum(len(part) for part in parts)
    held = shelf.take(f"all {name}", (rows, *parts[0].shape[1:]), parts[0], parts[0].device)
    return torch.cat(list(parts), out=held).to(device)


def in_one_piece(data: Data | None, learner: GradientLearner, device: torch.device) -> Whole | None:
    """All data as the learner's columns on the device; None where that would be a second copy of any size."""
    if data is None or not len(data):
        return None
    first = learner.batch(data.take(slice(0, 1)), slice(None))
    given = {"x": data.x, **({} if data.y is None else {"y": data.y})}
    if tree.is_branch(given["x"]) != tree.is_branch(first["x"]):
        return None
    pairs = zip(tree.values(first), tree.values(given), strict=True)
    copies = len(data) * sum(one.nbytes for one, column in pairs if not _as_it_is(one, column))
    if device.type == "cuda":
        whole = len(data) * tree.nbytes(first)
        if whole > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            return None
    elif copies > COPY:
        return None
    return Whole(tree.map(lambda column: column.to(device), learner.batch(data, slice(None))))


def _as_it_is(one: Tensor, column: Any) -> bool:
    """Whether a tensor like this can be had of the column without copying it."""
    flags = column.flags
    return bool(flags.c_contiguous and flags.writeable) and arrays.to_torch(column[:1]).dtype == one.dtype


def form(columns: Any) -> Any:
    """Dtypes and shapes of one example: clients whose forms differ cannot stand side by side."""
    return [(path, column.dtype, tuple(column.shape[1:])) for path, column in tree.leaves(columns)]
