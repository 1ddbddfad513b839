"""Numbers for Prometheus, counted here and written in its text format."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Upper ends of the histogram of rounds, in seconds."""

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """A number that is read when it is asked for. ``kind``: counter or gauge."""

    name: str
    kind: str
    help: str
    values: Mapping[Labels, float]


@dataclass
class Rounds:
    """What is counted of rounds, over all runs since this process began. May be told from any thread."""

    committed: int = 0
    discarded: int = 0
    failures: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def commit(self, seconds: float) -> None:
        """A round was committed after so long."""
        with self._lock:
            self.committed += 1
            self.seconds += seconds
            for i, end in enumerate(BUCKETS):
                self.buckets[i] += seconds <= end

    def discard(self) -> None:
        """A round was void."""
        with self._lock:
            self.discarded += 1

    def fail(self) -> None:
        """A site's work failed."""
        with self._lock:
            self.failures += 1

    def lines(self) -> list[str]:
        """Its numbers as text."""
        with self._lock:
            name = "insitu_round_seconds"
            lines = [f"# HELP {name} How long committed rounds took.", f"# TYPE {name} histogram"]
            lines += [f'{name}_bucket{{le="{end:g}"}} {n}' for end, n in zip(BUCKETS, self.buckets, strict=True)]
            lines += [f'{name}_bucket{{le="+Inf"}} {self.committed}', f"{name}_sum {self.seconds!r}"]
            lines += [f"{name}_count {self.committed}"]
            counters = (
                ("insitu_rounds_committed_total", "Rounds whose model counts.", self.committed),
                ("insitu_rounds_discarded_total", "Rounds that were void.", self.discarded),
                ("insitu_site_failures_total", "Tasks that sites could not do.", self.failures),
            )
            for counter, text, value in counters:
                lines += [f"# HELP {counter} {text}", f"# TYPE {counter} counter", f"{counter} {value}"]
            return lines


def text(rounds: Rounds, samples: Sequence[Sample]) -> str:
    """Everything in Prometheus's text format, version 0.0.4."""
    lines = rounds.lines()
    for sample in samples:
        lines += [f"# HELP {sample.name} {_help(sample.help)}", f"# TYPE {sample.name} {sample.kind}"]
        lines += [f"{sample.name}{_labels(labels)} {_number(value)}" for labels, value in sorted(sample.values.items())]
    return "\n".join(lines) + "\n"


def one(name: str, kind: str, help: str, value: float) -> Sample:
    """A number without labels."""
    return Sample(name, kind, help, {(): value})


def by(name: str, kind: str, help: str, label: str, values: Mapping[str, float]) -> Sample:
    """A number for each value of one label."""
    return Sample(name, kind, help, {((label, key),): value for key, value in values.items()})


def _labels(labels: Labels) -> str:
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{inner}}}" if inner else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _help(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
