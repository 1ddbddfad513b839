"""Stretches that come again are recorded and replayed: on a GPU, one launch in place of one for each call into torch.

A small model's step is some fifteen kernels of a few microseconds, and launching one takes as long. A CUDA graph
launches all kernels of a stretch at once; it knows the addresses that it was recorded with and nothing else. So what
changes from stretch to stretch, the examples, is copied into memory that stays (``held``), and all that the graph was
made for is part of its key: shapes, the learning rate, where the parameters lie.

What comes once is run as it is, which also readies what a recording must not begin (kernels, workspaces); what comes
again is recorded, and from then on replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from insitu.learners.torch.chain.links import Memory

KEPT = 8
"""Recordings, each with memory for a stretch of its own; what was not used for the longest time is let go."""
SEEN = 64
"""Keys that are remembered without a recording."""
TRIES = 3
"""Recordings that may run out of memory before no more are made: what filled it may be gone by the next."""
COLUMNS = ("x", "y", "weight", "share")

Sums = dict[str, Tensor]
Work = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Sequence[int], float, Memory], Sums]
"""(parameters, batch, counts, lr, memory) → sums: the parameters are changed in place."""


class Recording(Protocol):
    """Work that was recorded, not done."""

    def replay(self) -> Sums:
        """Does it, on the memory that it was recorded with. What it returns holds until it is replayed again."""
        ...


class Graph:
    """A recording as a CUDA graph."""

    def __init__(self, work: Callable[[], Sums], device: torch.device) -> None:
        # A recording takes down what is launched on its stream, and a stream belongs to a device: on that of another
        # one it would stay empty. One that fails leaves torch on its stream, and on its device.
        here, there = torch.cuda.current_stream(), torch.cuda.current_stream(device)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, stream=_side_stream(device)):
                self._sums = work()
        except BaseException:
            torch.cuda.set_stream(there)
            torch.cuda.set_stream(here)  # of the device that was the current one: the last that is set is
            raise

    def replay(self) -> Sums:
        """See :class:`Recording`."""
        self._graph.replay()
        return self._sums


class Again:
    """A recording on devices that have none: the same calls with the same arguments. For tests of what is held."""

    def __init__(self, work: Callable[[], Sums], device: torch.device) -> None:
        self.replay = work


RECORDERS: dict[str, Callable[[Callable[[], Sums], torch.device], Recording]] = {"cuda": Graph}
"""By type of device. On a CPU a call takes less than the work that it asks for, and nothing is recorded."""


class Replays:
    """The recordings of one chain."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Any, None] = OrderedDict()
        self._kept: OrderedDict[Any, tuple[Recording, dict[str, Tensor]]] = OrderedDict()
        self._trouble = ""
        self._short = 0
        self._said: list[str] = []

    def said(self) -> list[str]:
        """What was not told yet: that stretches are no longer recorded, and why."""
        said, self._said = self._said, []
        return said

    def run(
        self, work: Work, parameters: Mapping[str, Tensor], batch: Mapping[str, Any], counts: Sequence[int], lr: float
    ) -> Sums | None:
        """The stretch, replayed; None where it has to be run as it is."""
        key = (tuple(counts), lr, _places(parameters), tuple((batch[n].shape, batch[n].dtype) for n in COLUMNS))
        if key not in self._kept and not self._record(key, work, parameters, batch, counts, lr):
            return None
        self._kept.move_to_end(key)
        recording, held = self._kept[key]
        for name, column in held.items():
            column.copy_(batch[name])
        return recording.replay()

    def _record(self, key: Any, work: Work, parameters: Any, batch: Any, counts: Sequence[int], lr: float) -> bool:
        """Whether there is a recording now: not of what is seen for the first time, or cannot be recorded."""
        if self._trouble:
            return False
        if key not in self._seen:
            self._seen[key] = None
            while len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            return False
        memory, of_now, device = Memory(), dict(parameters), batch["x"].device
        try:
            held = {name: torch.empty_like(batch[name]).copy_(batch[name]) for name in COLUMNS}
            recording = RECORDERS[device.type](lambda: work(of_now, held, tuple(counts), lr, memory), device)
        except RuntimeError as error:  # a loss that looks at numbers, say; nothing has been done by then
            self._failed(error, device)
            return False
        self._kept[key] = recording, held
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return True

    def _failed(self, error: RuntimeError, device: torch.device) -> None:
        """A recording cannot be made: never again, unless it is memory that was short, which it may not always be."""
        if isinstance(error, torch.OutOfMemoryError):
            self._short += 1
            self._kept.clear()  # the memory of the others is that of the stretch itself now
            self._seen.clear()
            if self._short < TRIES:
                return
        self._trouble = str(error) or type(error).__name__
        self._said.append(
            f"stretches of steps are not recorded on {device}, and run as they are, which takes longer:"
            f" {self._trouble.splitlines()[0][:300]}"
        )


@cache
def _side_stream(device: torch.device) -> Any:
    """The stream that recordings are made on: one a device, as each that is used keeps memory of its own."""
    return torch.cuda.Stream(device)


def can_replay(device: torch.device) -> bool:
    """Whether stretches are recorded on this device."""
    return device.type in RECORDERS


def _places(parameters: Mapping[str, Tensor]) -> tuple[Any, ...]:
    return tuple((name, x.data_ptr(), x.shape) for name, x in parameters.items())
