"""Profile: a table of where a run's time went, and a trace that shows it as a flame graph."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from insitu.core import spans
from insitu.core.errors import StoreError
from insitu.core.spans import Phase, Recorder, Spent


@dataclass(frozen=True)
class Row:
    """A phase (:data:`insitu.core.spans.Phase`): seconds of wall time, their share of the whole, CPU seconds."""

    phase: Phase
    seconds: float
    share: float
    cpu_seconds: float


@dataclass(frozen=True)
class Lanes:
    """How well the vectorised engine's lanes were used.

    steps        steps of all lanes together
    lanes        lanes at work in a step, on average
    utilisation  the share of the slots of all batches, lanes × batch, that held a real example
    """

    steps: int
    lanes: float
    utilisation: float


class Profile:
    """Records where time goes in the block, at the cost of some microseconds a span::

        with insitu.Profile() as profile:
            insitu.run(plan, clients, rounds=20)
        print(profile)
        profile.write("trace.json")

    Only what runs in this process and thread is told apart. With worker processes, the time that they train in is
    ``idle`` here, and their CPU is ``workers_cpu_seconds``.
    """

    def __init__(self) -> None:
        self._recorder = Recorder()
        self._began = self._ended = (0, 0, 0.0)
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        self._recorder = Recorder()
        self._inside.enter_context(spans.recording(self._recorder))
        self._began = _clocks()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = _clocks()
        self._inside.close()

    @property
    def seconds(self) -> float:
        """Wall time from entering to leaving the block."""
        return (self._ended[0] - self._began[0]) / 1e9

    @property
    def cpu_seconds(self) -> float:
        """CPU of this process, all threads, in the block."""
        return (self._ended[1] - self._began[1]) / 1e9

    @property
    def workers_cpu_seconds(self) -> float:
        """CPU of processes that ended in the block, such as a run's workers."""
        return self._ended[2] - self._began[2]

    @property
    def rows(self) -> list[Row]:
        """All phases; their seconds and CPU add up to the block's, and what no span was around is ``other``."""
        totals = dict(self._recorder.totals)
        wall = self._ended[0] - self._began[0] - sum(spent.wall for spent in totals.values())
        cpu = self._ended[1] - self._began[1] - sum(spent.cpu for spent in totals.values())
        rest = totals.get("other", Spent())
        totals["other"] = Spent(rest.wall + wall, rest.cpu + cpu, rest.spans)
        found = ((phase, totals.get(phase, Spent())) for phase in get_args(Phase))
        whole = max(self.seconds, 1e-9)
        return [Row(p, spent.wall / 1e9, spent.wall / 1e9 / whole, spent.cpu / 1e9) for p, spent in found]

    @property
    def lanes(self) -> Lanes | None:
        """The lanes' use; None where nothing ran in lanes in this process."""
        counts = self._recorder.counts
        if not counts.get("steps"):
            return None
        return Lanes(counts["steps"], counts["lanes"] / counts["steps"], counts["examples"] / counts["slots"])

    def plain(self) -> dict[str, Any]:
        """All figures as JSON-ready data."""
        lanes = self.lanes
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "workers_cpu_seconds": self.workers_cpu_seconds,
            "phases": [vars(row) for row in self.rows],
            "lanes": None if lanes is None else vars(lanes),
        }

    def __str__(self) -> str:
        lines = [f"{'phase':<10}{'seconds':>9}{'share':>8}{'CPU':>9}"]
        lines += [
            f"{row.phase:<10}{row.seconds:>9.3f}{100 * row.share:>6.1f} %{row.cpu_seconds:>9.3f}" for row in self.rows
        ]
        lines.append(f"{'all':<10}{self.seconds:>9.3f}{100:>6.1f} %{self.cpu_seconds:>9.3f}")
        if self.workers_cpu_seconds >= 0.01:
            lines.append(f"worker processes: {self.workers_cpu_seconds:.2f} s CPU")
        if (lanes := self.lanes) is not None:
            lines.append(
                f"lanes: {100 * lanes.utilisation:.1f} % of the slots held an example,"
                f" {lanes.lanes:.1f} lanes at work in a step, {lanes.steps} steps"
            )
        return "\n".join(lines)

    def trace(self) -> dict[str, Any]:
        """The spans as Chrome trace events, times in microseconds, which Perfetto and speedscope read."""
        own, process = self._recorder.thread, os.getpid()
        threads = {own: 0} | {span.thread: 1 for span in self._recorder.spans if span.thread != own}
        told: list[dict[str, Any]] = [
            {"name": "thread_name", "ph": "M", "pid": process, "tid": tid, "args": {"name": name}}
            for tid, name in ((0, "run"), (1, "store, writing behind"))
            if tid in threads.values()
        ]
        # An outer span comes before those inside it, as readers of equal beginnings expect.
        for span in sorted(self._recorder.spans, key=lambda span: (span.began, -span.took)):
            told.append(
                {
                    "name": span.name, "cat": span.phase, "ph": "X", "pid": process, "tid": threads[span.thread],
                    "ts": (span.began - self._began[0]) / 1e3, "dur": span.took / 1e3,
                }
            )  # fmt: skip
        return {"traceEvents": told, "displayTimeUnit": "ms", "otherData": {"spans left out": self._recorder.left_out}}

    def write(self, path: str | Path) -> None:
        """Writes the trace. Raises StoreError where the file cannot be written."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.trace()), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"no trace can be written to {path} ({error.strerror}): choose another file") from error


def _clocks() -> tuple[int, int, float]:
    """Wall and CPU of this process in nanoseconds, CPU seconds of its ended children."""
    times = os.times()
    return time.perf_counter_ns(), time.process_time_ns(), times.children_user + times.children_system
