"""Wave: K clients of a block that are trained side by side, and the batches of all their steps.

Shapes: K lanes, one a client, longest first, so that those at work in step t are always the first n_t; B examples a
batch. The batches of all steps stand behind each other in the order in which they are used, ``[Σ n_t, B, …]``, and are
gathered a stretch of steps at a time, with one call for all lanes: a step reads one piece of memory and copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from insitu.core import spans, tree
from insitu.core.descent import Job
from insitu.engines.vectorized.examples import Examples, Shelf, sent

STRETCH = 4 * 2**20
"""Bytes of examples that are gathered at a time, so far as one step does not need more: they stay in the cache."""

LONG_STRETCH = 64 * 2**20
"""The same on a GPU, whose memory is as fast as a processor's cache, and which is asked as seldom as may be."""

STEPS = 8
"""Steps that are gathered at a time on a CPU even where they are more bytes than STRETCH, up to four times as many.

Where lanes are many and models small, what is done once a stretch takes as long as some steps.
"""


@dataclass(frozen=True)
class Turn:
    """One step: the first ``lanes`` lanes and their batches [n, B, …]; ``sizes`` [n] are the batches' own lengths."""

    lanes: int
    batch: dict[str, Any]
    sizes: np.ndarray


@dataclass(frozen=True)
class Stretch:
    """Some steps: in step t the first ``counts[t]`` lanes are at work, R = Σ counts.

    batch columns [R, B, …], step after step, but for ``seed`` [counts[0]]; ``sizes`` [R].
    """

    counts: list[int]
    batch: dict[str, Any]
    sizes: np.ndarray

    def turns(self) -> Iterator[Turn]:
        """Its steps one by one."""
        at = 0
        for n in self.counts:
            part = slice(at, at + n)
            batch = {
                name: column[:n] if name == "seed" else tree.map(lambda c, part=part: c[part], column)
                for name, column in self.batch.items()
            }
            yield Turn(n, batch, self.sizes[part])
            at += n


class Wave:
    """Some clients' jobs, sorted by their number of steps, longest first."""

    def __init__(self, jobs: Sequence[Job], examples: Examples, size: int, device: torch.device, shelf: Shelf) -> None:
        """``examples``: where the clients' are. ``size``: B."""
        self.jobs = sorted(jobs, key=lambda job: -len(job.batches))
        self.size, self.device = size, device
        self.steps = np.array([len(job.batches) for job in self.jobs])
        self._shelf = shelf
        self.columns, self._orders = examples.of(self.jobs, shelf, device)
        self._seeds = torch.tensor([job.dropout for job in self.jobs], device=device)
        self._dtype = tree.first_leaf({"s": self.jobs[0].carry["shared"], "p": self.jobs[0].carry["personal"]}).dtype

    def example(self) -> Any:
        """What a step's ``x`` looks like [1, 1, …]."""
        return tree.map(lambda column: column[None, :1], self.columns["x"])

    def counts(self) -> Any:
        """n_t for every step: how many clients have not finished before it [T]."""
        return (self.steps[None, :] > np.arange(self.steps[0])[:, None]).sum(1)

    def stretches(self, pad_to: int | None = None) -> Iterator[Stretch]:
        """All steps in order, some at a time. ``pad_to``: so many lanes at every step, idle ones weigh nothing."""
        counts = self.counts()
        if pad_to is not None:
            counts = np.full(len(counts), pad_to)
        with spans.span("data", "plan"):
            rows, sizes = self._plan(counts)
        at = row = 0
        for until in self._ends(counts):
            stop = row + int(counts[at:until].sum())
            with spans.span("data", "gather"):
                stretch = self._stretch(rows[row:stop], sizes[row:stop], counts[at:until].tolist())
            yield stretch
            at, row = until, stop

    def steps_in_a_stretch(self, lanes: int) -> int:
        """About how many steps of so many lanes are taken in one go."""
        return max(1, min(int(self.steps.mean()), self._most(lanes) // lanes))

    def turns(self, pad_to: int | None = None) -> Iterator[Turn]:
        """All steps in order, one at a time."""
        for stretch in self.stretches(pad_to):
            yield from stretch.turns()

    def stacked(self, trees: Sequence[Any], name: str) -> Any:
        """Trees of the clients, in the order of ``jobs``, as one with K in front of every leaf.

        It stands in memory that the next wave's stack of this name takes.
        """
        first = trees[0]
        if tree.is_branch(first):
            return {key: self.stacked([some[key] for some in trees], f"{name}/{key}") for key in first}
        held = self._shelf.take(name, (len(trees), *first.shape), first, self.device)
        # Where all are one tensor, as at the start of a round, it is read once.
        if all(leaf is first for leaf in trees):
            return held.copy_(first.expand(held.shape))
        if all(leaf.device == held.device for leaf in trees):
            return torch.stack(tuple(trees), out=held)
        return held.copy_(torch.stack(tuple(trees)))

    def _gathered(self, name: str, column: Any, index: Tensor, shape: Sequence[int]) -> Any:
        """Rows of a column, [*shape, …]."""
        if isinstance(column, Mapping):
            return {key: self._gathered(f"{name}/{key}", part, index, shape) for key, part in column.items()}
        held = self._shelf.take(f"now {name}", (len(index), *column.shape[1:]), column, self.device)
        return torch.index_select(column, 0, index, out=held).view(*shape, *column.shape[1:])

    def _plan(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of each batch [Σ n_t, B] in the joint columns, step after step, and the batches' lengths [Σ n_t].

        A batch with fewer examples is filled up with its last one again, which weighs nothing: so no lane ever sees
        what is not its client's.
        """
        before = np.cumsum([0, *(len(order) for order in self._orders[:-1])])
        stops = np.concatenate([job.batches.ends + n for job, n in zip(self.jobs, before, strict=True)])
        starts = np.concatenate([[0], stops[:-1]])
        first = np.cumsum(self.steps) - self.steps
        starts[first] = before
        inside = np.minimum(starts[:, None] + np.arange(self.size), stops[:, None] - 1)
        # Lane after lane so far; where each belongs when they stand step after step.
        lane = np.repeat(np.arange(len(self.jobs)), self.steps)
        step = np.arange(len(stops)) - first[lane]
        place = (np.cumsum(counts) - counts)[step] + lane
        rows = np.zeros((int(counts.sum()), self.size), dtype=np.int64)
        if len(rows) > len(stops) and (counts == len(self.jobs)).all():
            # Who has finished and stays sees its own last example.
            rows.reshape(len(counts), -1)[:] = np.repeat([order[-1] for order in self._orders], self.size)
        sizes = np.zeros(len(rows), dtype=np.int64)
        rows[place], sizes[place] = np.concatenate(self._orders)[inside], stops - starts
        return rows, sizes

    def _ends(self, counts: np.ndarray) -> list[int]:
        """Where to cut the steps, so that each stretch's examples are few enough bytes."""
        most, ends, held = self._most(int(counts[0])), [], 0
        for t, count in enumerate(counts.tolist()):
            if held and held + count > most:
                ends.append(t)
                held = 0
            held += count
        return [*ends, len(counts)]

    def _most(self, lanes: int) -> int:
        """Batches in a stretch of so many lanes."""
        example: int = sum(c.element_size() * max(1, c[:1].numel()) for c in tree.values(self.columns))
        batch = example * self.size
        if self.device.type != "cpu":
            return max(1, LONG_STRETCH // batch)
        return max(1, STRETCH // batch, min(STEPS * lanes, 4 * STRETCH // batch))

    def _stretch(self, rows: np.ndarray, sizes: np.ndarray, counts: list[int]) -> Stretch:
        """Steps whose batches' rows are [Σ n_t, B]."""
        index = sent(rows.reshape(-1), self.device)
        columns = {name: self._gathered(name, column, index, rows.shape) for name, column in self.columns.items()}
        inside = np.arange(self.size) < sizes[:, None]
        weight = sent(inside, self.device, self._dtype)
        share = sent(inside / np.maximum(sizes, 1)[:, None], self.device, self._dtype)
        return Stretch(counts, {**columns, "weight": weight, "share": share, "seed": self._seeds_of(counts[0])}, sizes)

    def _seeds_of(self, count: int) -> Tensor:
        if count > len(self._seeds):
            return torch.cat([self._seeds, self._seeds.new_zeros(count - len(self._seeds))])
        return self._seeds[:count]


def width(job: Job, batch_size: int | None, mixes: bool) -> int:
    """The examples that a client's batches are padded to: a matter of this client alone.

    Where a batch is all of a client's data, it is padded to the next power of two, so that clients of about a size
    stand side by side. Layers that mix examples see no padding: they read a part of a batch.
    """
    if batch_size is not None and not mixes:
        return batch_size
    return 1 << (job.batches.largest() - 1).bit_length()
