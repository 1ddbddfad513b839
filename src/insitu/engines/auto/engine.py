"""Auto: the engine that a run gets where none is named."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from insitu.core.protocols import Engine, Session, Setting
from insitu.engines.inline import Inline
from insitu.engines.processes import Processes


@dataclass(frozen=True)
class Auto(Engine):
    """Lanes in this process, where the plan allows them, and worker processes as soon as they pay.

    Starts at once with lanes, measures what a round takes, and is joined by a worker process for each other core where
    they save more than they take to start; training goes on meanwhile. The answer has the same bits wherever it
    is computed. What was chosen is among the run's choices, and a resumed run takes it. Where clients are to answer in
    real time (``Buffered(clock="real")``) there are workers from the start, one a core.
    """

    @classmethod
    def part_name(cls) -> str:
        return "auto"

    def refuses(self, plan: Any) -> str | None:
        return None

    def open(self, setting: Setting) -> Session:
        if setting.plan.buffered is not None and setting.plan.buffered.real:
            return _at_their_own_pace(setting)
        if len(setting.clients) < 2 or "torch" not in sys.modules:
            return _inline(setting)
        from insitu.engines.auto.session import AutoSession
        from insitu.engines.vectorized import Vectorized

        if Vectorized().refuses(setting.plan) is not None:
            return _inline(setting)
        return AutoSession(setting)


def _at_their_own_pace(setting: Setting) -> Session:
    workers = Processes()
    return _inline(setting) if workers.refuses(setting.plan) else workers.open(setting)


def _inline(setting: Setting) -> Session:
    session = Inline().open(setting)
    session.choices["inner"] = "inline"
    return session
