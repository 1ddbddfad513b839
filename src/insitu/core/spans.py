"""Spans: where a run's time goes, written down at the few places where one kind of work ends and another begins.

``with span("fold", "merge"):`` costs a look-up while nobody records, and two looks at two clocks while somebody does.
Time is booked once: a span's own time is what is left when the spans inside it are taken off, so that the phases add up
to the whole. A span must not be open across a ``yield``: what the other side does would be inside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NamedTuple, Protocol

Phase = Literal["start", "data", "train", "fold", "evaluate", "store", "idle", "other"]
"""start     opening the engine and the run's record, up to the first round
data      loading clients, cutting and gathering batches
train     steps
fold      updates into a sum, and the server's step with it
evaluate  measuring the model, whatever it takes
store     events, checkpoints and memories on their way to the disk
idle      waiting for worker processes
other     observers, drawing cohorts, the loop itself"""

WHOLE = frozenset({"start", "evaluate", "store"})
"""What happens inside a span of these phases is booked to it: loading test data is part of evaluating."""

MOST = 200_000
"""Spans that are kept for the trace; those after them are counted in the phases alone."""


class Span(NamedTuple):
    """One span: ``began`` in nanoseconds of ``time.perf_counter_ns``, ``took`` in nanoseconds."""

    phase: Phase
    name: str
    thread: int
    began: int
    took: int


@dataclass
class Spent:
    """Time in one phase: ``wall`` and ``cpu`` in nanoseconds, ``spans`` how many there were."""

    wall: int = 0
    cpu: int = 0
    spans: int = 0


class Recorder:
    """What is recorded of one piece of a program.

    totals   by phase, of the thread that made the recorder; other threads (a store that writes behind) add CPU alone,
             since their wall time passes beside it
    spans    the first ``MOST``, in the order in which they ended, of all threads; ``left_out`` counts the rest
    counts   what was counted, by name
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.totals: dict[Phase, Spent] = {}
        self.spans: list[Span] = []
        self.left_out = 0
        self.counts: dict[str, int] = {}
        self._stacks: dict[int, list[_Open]] = {}
        self._beside = 0

    def count(self, **more: int) -> None:
        """Adds to the counts."""
        for name, value in more.items():
            self.counts[name] = self.counts.get(name, 0) + value

    def _cpu(self, thread: int) -> int:
        """CPU nanoseconds: of the process but for what other threads' spans took, or of this other thread."""
        if thread != self.thread:
            return time.thread_time_ns()
        return time.process_time_ns() - self._beside

    def _ended(self, span: _Open, wall: int, cpu: int) -> None:
        stack = self._stacks[span.thread]
        stack.pop()
        if stack:
            stack[-1].inner_wall += wall
            stack[-1].inner_cpu += cpu
        spent = self.totals.setdefault(span.booked, Spent())
        spent.spans += 1
        spent.cpu += cpu - span.inner_cpu
        if span.thread == self.thread:
            spent.wall += wall - span.inner_wall
        elif not stack:
            self._beside += cpu
        if len(self.spans) < MOST:
            self.spans.append(Span(span.phase, span.name, span.thread, span.began, wall))
        else:
            self.left_out += 1


@dataclass(slots=True)
class _Open:
    """A span under way."""

    recorder: Recorder
    phase: Phase
    name: str
    thread: int = 0
    began: int = 0
    cpu: int = 0
    inner_wall: int = 0
    inner_cpu: int = 0
    booked: Phase = field(default="other")

    def __enter__(self) -> None:
        self.thread = threading.get_ident()
        stack = self.recorder._stacks.setdefault(self.thread, [])
        self.booked = stack[-1].booked if stack and stack[-1].booked in WHOLE else self.phase
        stack.append(self)
        self.cpu = self.recorder._cpu(self.thread)
        self.began = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall = time.perf_counter_ns() - self.began
        self.recorder._ended(self, wall, self.recorder._cpu(self.thread) - self.cpu)


class _Off:
    """A span while nobody records."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Entered(Protocol):
    """What ``with`` takes."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


_OFF = _Off()
_RECORDER: ContextVar[Recorder | None] = ContextVar("insitu spans", default=None)


def span(phase: Phase, name: str) -> Entered:
    """A span of a phase, to be entered with ``with``; ``name`` is what the trace shows."""
    recorder = _RECORDER.get()
    return _OFF if recorder is None else _Open(recorder, phase, name)


def recorder() -> Recorder | None:
    """The recorder of what runs here, or None: what is costly to count is counted only for one."""
    return _RECORDER.get()


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Records what runs inside, in this thread and in those that are started with a copy of its context."""
    token = _RECORDER.set(recorder)
    try:
        yield recorder
    finally:
        _RECORDER.reset(token)
