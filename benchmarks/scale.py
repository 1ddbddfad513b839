"""A million lazy clients, 10,000 of them a round: memory, start, and what a round costs beside training.

    python benchmarks/scale.py [--quick] [--rounds 20] [--cohort 10000] [--engine auto] [--json FILE]

Logistic regression (784 → 10) on clients of the sizes of benchmarks/README.md; a client's examples are a slice of one
array in memory, so that loading costs next to nothing and what is beside training shows most. With a store, as runs
have.

start         seconds from this script's first line, imports included, to the first round; and their CPU
PSS           of the whole tree of processes: after each round, and the largest seen, sampled every five seconds
bookkeeping   CPU outside of the engine's session over the tree's CPU of the same rounds: drawing the cohort, making the
              tasks, reduce, events, store; all threads of this process but the one that trains count as such

Exit status 1 where a limit is missed: 1.5 GiB and flat (the largest of the second half at most 5 % above the largest of
the first), bookkeeping 5 %, start 5 s.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import argparse  # noqa: E402  # imports are part of what starting takes
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterable, Iterator  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

import insitu  # noqa: E402
from insitu.algorithms.fedavg import FedAvg  # noqa: E402
from insitu.bench.machine import describe, sentence  # noqa: E402
from insitu.bench.processes import PeakMemory, cpu_seconds, pss_bytes  # noqa: E402
from insitu.bench.workload import BATCH, CLASSES, FEATURES, LR, sizes  # noqa: E402
from insitu.core.protocols import Engine, Session, Setting  # noqa: E402
from insitu.core.types import Schema  # noqa: E402
from insitu.data import Clients  # noqa: E402
from insitu.learners.torch import TorchLearner  # noqa: E402
from insitu.names import find  # noqa: E402

POPULATION = 1_000_000
POOL = 4000
"""Examples that all clients' slices are cut from."""
LIMITS = {"pss_gib": 1.5, "growth": 1.05, "bookkeeping": 0.05, "start_s": 5.0}


@dataclass
class Meter:
    """CPU seconds of the main thread inside the session; and by round, the clock, the tree's CPU and PSS."""

    inside: float = 0.0
    start: float = 0.0
    start_cpu: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    last: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def now(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), time.process_time(), self.inside, cpu_seconds(os.getpid())

    def __call__(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "RoundStarted" and not self.start:
            self.start, self.start_cpu, self.last = time.perf_counter() - BEGAN, cpu_seconds(os.getpid()), self.now()
        elif kind == "RoundCommitted":
            now = self.now()
            wall, own, inside, tree = (b - a for a, b in zip(self.last, now, strict=True))
            memory = pss_bytes(os.getpid())
            row = {"wall_s": wall, "cpu_s": tree, "beside_s": own - inside, "pss_bytes": memory, "failed": event.failed}
            self.rows.append(row)
            print(
                f"round {len(self.rows):3}: {wall:6.2f} s, CPU {tree:6.2f} s, beside training {own - inside:5.3f} s, "
                f"PSS {memory / 2**20:5.0f} MiB",
                flush=True,
            )
            self.last = self.now()


@dataclass(frozen=True)
class Metered(Engine):
    """Another engine, with the time inside its session written down."""

    inner: Engine
    meter: Meter

    def config(self) -> dict[str, Any]:
        return self.inner.config()

    def refuses(self, plan: Any) -> str | None:
        return self.inner.refuses(plan)

    def open(self, setting: Setting) -> Session:
        return MeteredSession(self.inner.open(setting), self.meter)


class MeteredSession:
    """Counts the CPU of the thread that asks, from asking until being answered, without that of making tasks."""

    def __init__(self, inner: Session, meter: Meter) -> None:
        self._inner, self._meter = inner, meter

    @property
    def choices(self) -> Any:
        return self._inner.choices

    def run(self, work: Iterable[Any]) -> Iterator[Any]:
        items = iter(self._inner.run(self._outside(work)))
        while True:
            began = time.thread_time()
            item = next(items, None)
            self._meter.inside += time.thread_time() - began
            if item is None:
                return
            yield item

    def close(self) -> None:
        self._inner.close()

    def _outside(self, work: Iterable[Any]) -> Iterator[Any]:
        tasks = iter(work)
        while True:
            began = time.thread_time()
            task = next(tasks, None)
            self._meter.inside -= time.thread_time() - began
            if task is None:
                return
            yield task


def population() -> Clients:
    """A million clients: nothing of that size is made but their sizes, which a loader looks up."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((POOL, FEATURES), dtype=np.float32)
    y = (x @ generator.standard_normal((FEATURES, CLASSES), dtype=np.float32)).argmax(axis=1)
    lengths = sizes(1000)

    def load(number: int) -> tuple[np.ndarray, np.ndarray]:
        length = lengths[number % len(lengths)]
        start = number * 7919 % (POOL - length)
        return x[start : start + length], y[start : start + length]

    return Clients.lazy(range(POPULATION), load, schema=Schema((FEATURES,), np.arange(CLASSES)))


def measured(meter: Meter, peak: int) -> dict[str, Any]:
    """The figures out of what was written down; the first round chooses and compiles, and is not among the shares."""
    rows = meter.rows[1:] or meter.rows
    memory = [row["pss_bytes"] for row in meter.rows]
    half = (len(memory) + 1) // 2
    return {
        "start_s": meter.start,
        "start_cpu_s": meter.start_cpu,
        "pss_gib": peak / 2**30,
        "growth": max(memory[half:], default=memory[-1]) / max(memory[:half]),
        "bookkeeping": sum(row["beside_s"] for row in rows) / sum(row["cpu_s"] for row in rows),
        "round_s": float(np.median([row["wall_s"] for row in rows])),
        "round_cpu_s": float(np.median([row["cpu_s"] for row in rows])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1000: whether it works")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cohort", type=int, default=10_000)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rounds, cohort = (3, 1000) if given.quick else (given.rounds, given.cohort)
    meter = Meter()
    engine = Metered(find("engines", given.engine)(), meter)
    learner = TorchLearner(nn.Linear(FEATURES, CLASSES))
    plan = insitu.Plan(FedAvg(lr=LR, batch_size=BATCH), learner, cohort=insitu.Uniform(cohort))
    with tempfile.TemporaryDirectory() as folder, PeakMemory(os.getpid(), every=5) as memory:
        store = Path(folder) / "runs.db"
        insitu.run(plan, population(), rounds=rounds, engine=engine, store=store, observers=[meter])
    figures = measured(meter, memory.peak)
    machine = describe()
    print(sentence(machine))
    for name, value in figures.items():
        limit = f"  (limit {LIMITS[name]:g})" if name in LIMITS else ""
        print(f"{name:14} {value:8.3f}{limit}")
    if given.json:
        whole = {"machine": machine, "engine": given.engine, "rounds": rounds, "cohort": cohort, **figures}
        given.json.write_text(json.dumps({**whole, "by_round": meter.rows}, indent=1))
    sys.exit(any(figures[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    main()
