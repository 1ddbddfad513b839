"""Processes: the engine's description, and what it chooses when it is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from insitu.core import checks
from insitu.core.protocols import Engine, Setting
from insitu.engines.processes.pack import unpicklable
from insitu.engines.processes.session import ProcessesSession
from insitu.rounds.blocks import blocks_in_a_round


@dataclass(frozen=True)
class Processes(Engine):
    """Every core of one machine: worker processes with one thread each, which run lanes where the plan allows them.

    workers  how many; None: as many as there are usable cores, or blocks in a round if those are fewer
    lanes    clients at once in each worker, as in :class:`~insitu.engines.vectorized.Vectorized`
    compile  True, False, or "auto", as there
    device   as there, but the CPU unless another is given: workers on one GPU get in each other's way

    The number of workers changes nothing in the answer, not one bit. Works from a script without ``if __name__ ==
    "__main__"``, a notebook and the prompt. A worker that dies costs the clients of its block their updates of that
    round, and another takes its place. What clients' code prints comes out on stderr.
    """

    workers: int | None = None
    lanes: int | None = None
    compile: bool | Literal["auto"] = "auto"
    device: str | None = "cpu"

    def __post_init__(self) -> None:
        for name in ("workers", "lanes"):
            if getattr(self, name) is not None:
                checks.count(**{name: getattr(self, name)})
        checks.one_of((True, False, "auto"), compile=self.compile)

    @classmethod
    def part_name(cls) -> str:
        return "processes"

    def refuses(self, plan: Any) -> str | None:
        if os.name != "posix":
            return f"workers inherit sockets and files as POSIX systems do, not {os.name!r}: use engine='vectorized'"
        return unpicklable(plan, "the plan")

    def open(self, setting: Setting) -> ProcessesSession:
        workers = setting.choices.get("workers") or self._count(setting)
        options = {"lanes": self.lanes, "compile": self.compile, "device": self.device}
        return ProcessesSession(setting, workers, options)

    def _count(self, setting: Setting) -> int:
        buffered = setting.plan.buffered
        if buffered is not None and buffered.real:  # one client each, at its own pace
            return self.workers or min(usable_cores(), buffered.concurrency or len(setting.clients))
        wanted, blocks = self.workers or usable_cores(), blocks_in_a_round(setting)
        if blocks < wanted:
            setting.notify(
                f"a round is {blocks} block{'s' * (blocks > 1)} of clients, so of {wanted} workers no more than that"
                " have work at a time: Plan(block=…) cuts smaller blocks"
            )
        return self.workers or min(wanted, blocks)


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
