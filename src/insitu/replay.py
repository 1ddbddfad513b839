"""A run in real time, over again: who arrived in which of its rounds, out of the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insitu.core.errors import PlanError, ResumeError
from insitu.core.protocols import Store
from insitu.record import matching
from insitu.rounds.arrivals import Record
from insitu.rounds.plan import Plan


def arrivals(plan: Plan, store: Store | None, replay: str | None, now: Mapping[str, Any]) -> Record | None:
    """The record of the run that is to be replayed; None where none is. ``now`` is the record of the run to be made.

    Raises ResumeError where the store has no such run, or one of another plan, seed or population, or with fewer
    rounds; PlanError where the plan's rounds are not in real time, so that there is nothing to replay.
    """
    if replay is None:
        return None
    if plan.buffered is None or not plan.buffered.real:
        raise PlanError(
            f'replay={replay!r}: only rounds in real time, Buffered(…, clock="real"), depend on more than the seed: run'
            " the plan again with the same seed"
        )
    if store is None:
        raise ResumeError(f"replay={replay!r} needs the store that holds the run: give store=…")
    run = matching(store, replay, dict(now))["id"]
    found: dict[int, list[tuple[int, int]]] = {}
    for event in store.events(run, kinds=("Arrivals",)):
        found[event["round"]] = [(int(place), int(version)) for _, place, version, _ in event["rows"]]
    if len(found) < now["rounds"]:
        raise ResumeError(
            f"run {run} has {len(found)} rounds to be replayed, not {now['rounds']}: give rounds={len(found)}"
        )
    return found
