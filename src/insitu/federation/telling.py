"""What is said of a run that is not being trained: in a list, in the queue, after an order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from insitu.core.federation import Submitted
from insitu.federation import status
from insitu.federation.settings import RunsTable
from insitu.history import History

Order = Literal["stop", "pause", "resume"]
ALIVE = ("queued", "running", "stopping")
"""What a run's status is while something is to happen by itself."""
Told = tuple[int, Mapping[str, Any]]
"""Of a run: the number of committed rounds, and the last one's row in its history."""


def rounds(events: Iterable[Mapping[str, Any]]) -> Told:
    """What a run's events tell of its rounds."""
    history = History()
    for event in events:
        if event["event"] in ("RoundCommitted", "Evaluated"):
            history.take(event)
    return len(history), history[-1] if len(history) else {}


def short(run: Submitted, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """A run in a list; ``known``: as the store of runs lists it, if it has begun."""
    known = known or {}
    named = {key: (known.get("config") or {}).get(key) or run.tables.get(key) for key in ("algorithm", "learner")}
    return {
        "run": run.run,
        "status": run.status,
        "reason": run.reason,
        "by": run.by,
        "at": run.at,
        "of": (run.tables.get("run") or {}).get("rounds"),
        "rounds": known.get("rounds", 0),
        "metrics": known.get("metrics", {}),
        **{key: value.get("name") if isinstance(value, Mapping) else value for key, value in named.items()},
    }


def starting(run: Submitted, declared: Sequence[str], enrolled: Sequence[str], settings: RunsTable, now: float) -> str:
    """What a queued run waits for; empty where it is only for room."""
    if run.status != "queued":
        return ""
    missing = [name for name in enrolled if name not in declared]
    if len(declared) < settings.sites:
        some = f" ({', '.join(missing)})" if missing else ""
        return (
            f"it starts when {settings.sites} sites have said what data they have; {len(declared)} have,"
            f" {len(missing)} that are enrolled have not{some}"
        )
    left = settings.patience - (now - run.at)
    if missing and left > 0:
        return f"it starts when {', '.join(missing)} have connected, or in {status.duration(left)} without them"
    return ""


def after(order: Order, before: str, live: bool) -> str | None:
    """The status after an order; None where it makes no sense. ``live``: whether a thread is at work on the run."""
    if order == "stop":
        if before in ("queued", "paused", "failed", "stopped"):
            return "stopping" if live else "stopped"
        return "stopping" if before in ("running", "stopping") else None
    if order == "pause":
        return "paused" if before in ("queued", "running", "paused") else None
    if before in ("paused", "failed", "stopped"):
        return "queued"
    return before if before in ("queued", "running") else None
