"""Which examples make up each step of a client's local work: a function of the seeds, equal on every engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from insitu.core import seeds


@dataclass(frozen=True)
class Batches:
    """The steps of one task. Step s takes the examples ``order[ends[s-1]:ends[s]]``."""

    order: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, step: int) -> np.ndarray:
        start = self.ends[step - 1] if step else 0
        return self.order[start : self.ends[step]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[step] for step in range(len(self)))

    def largest(self) -> int:
        """The examples in the largest step."""
        return int(np.diff(self.ends, prepend=0).max())


def pooled(n: int, batch_size: int | None, step: int, seed: int) -> np.ndarray:
    """The examples of one step, out of n that all workers hold together: numbers [b].

    Every epoch is a new permutation; its last, partial batch is kept. ``batch_size=None`` takes all n. The plan knows
    nothing of the workers, who cut each batch among themselves (:func:`cut`): so a run that goes on with another number
    of them still sees every example once an epoch.
    """
    if batch_size is None or batch_size >= n:
        return np.arange(n)
    epoch, place = divmod(step, math.ceil(n / batch_size))
    return _epoch(n, seed, epoch)[place * batch_size : (place + 1) * batch_size]


def cut(examples: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """A rank's part of a batch: consecutive, the parts of about one length."""
    b = len(examples)
    return examples[rank * b // ranks : (rank + 1) * b // ranks]


@lru_cache(maxsize=2)
def _epoch(n: int, seed: int, epoch: int) -> np.ndarray:
    order = seeds.generator(seed, epoch, "", "epoch").permutation(n)
    order.flags.writeable = False
    return order


def batches(
    n: int,
    batch_size: int | None,
    epochs: int | None,
    steps: int | None,
    *,
    seed: int,
    round: int,
    client: str,
    pairs: bool = False,
) -> Batches:
    """Batches over ``n`` examples: every epoch a new permutation; its last, partial batch is kept.

    ``batch_size=None`` takes all examples in their own order. With ``steps`` given, epochs follow one another until
    so many batches are cut. ``pairs``: a leftover batch of one joins the batch before it, for layers that mix examples.
    """
    order = np.arange(n)
    if batch_size is not None:
        generator = seeds.restarted(seed, round, client, "batches")
        order = generator.permutation(n)
    ends = _ends(n, batch_size, pairs)
    passes = math.ceil(steps / len(ends)) if steps is not None else (epochs or 1)
    if passes > 1:
        more = [order if batch_size is None else generator.permutation(n) for _ in range(passes - 1)]
        order = np.concatenate([order, *more])
        ends = np.concatenate([ends + n * i for i in range(passes)])
    return Batches(order, ends if steps is None else ends[:steps])


def epoch_steps(n: int, batch_size: int | None, *, pairs: bool = False) -> int:
    """How many batches an epoch over ``n`` examples has."""
    return len(_ends(n, batch_size, pairs))


def onward(
    n: int, batch_size: int | None, first: int, steps: int, *, seed: int, client: str, pairs: bool = False
) -> Batches:
    """Steps ``first`` … ``first + steps - 1`` (from 0) of a walk through a client's epochs that never starts anew.

    The order within an epoch is a function of (seed, client, epoch), so wherever a round begins and however long it is,
    every example is seen once an epoch. ``batch_size=None`` takes all examples in their own order.
    """
    ends = _ends(n, batch_size, pairs)
    starts = np.concatenate([[0], ends[:-1]])
    pieces, sizes = [], []
    order, known = np.arange(n), -1
    for epoch, step in (divmod(step, len(ends)) for step in range(first, first + steps)):
        if epoch != known and batch_size is not None:
            order, known = seeds.generator(seed, epoch, client, "epoch").permutation(n), epoch
        pieces.append(order[starts[step] : ends[step]])
        sizes.append(len(pieces[-1]))
    return Batches(np.concatenate(pieces), np.cumsum(sizes))


def _ends(n: int, batch_size: int | None, pairs: bool) -> np.ndarray:
    """Where the batches of one epoch end; a leftover batch of one joins the one before where ``pairs``."""
    size = n if batch_size is None else min(batch_size, n)
    ends = np.arange(size, n + size, size)
    ends[-1] = n
    if pairs and len(ends) > 1 and n - ends[-2] == 1:
        ends = np.append(ends[:-2], n)
    return ends
