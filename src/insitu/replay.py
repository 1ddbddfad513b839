"""A run in real time, over again: who arrived in which of its rounds, out of the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insitu.core.errors import PlanError, ResumeError
from insitu.core.protocols import Store
from insitu.record import matching
from insitu.rounds.arrivals import Record
from insitu.rounds.plan import Plan


def arrivals(
    plan: Plan, store: Store | None, replay: str | None, resumed: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> tuple[str | None, Record | None]:
    """The run that is to be replayed, and who arrived when in it; None where none is.

    ``replay`` is how a new run names it. One that is gone on with, whose record is ``resumed``, replays what it did
    before. ``now`` is the record of the run to be made.

    Raises ResumeError where the store has no such run, or one of another plan, seed or population, or with fewer
    rounds, or where the run gone on with replays another; PlanError where the plan's rounds are not in real time, so
    that there is nothing to replay.
    """
    if resumed is not None:
        before = resumed.get("replay")
        if replay is not None and (store is None or before is None or _whole(store, replay) != _whole(store, before)):
            raise ResumeError(
                f"run {resumed['id']} replays {before or 'no other run'}, not {replay}: leave replay out, or start anew"
                " without resume"
            )
        replay = before
    if replay is None:
        return None, None
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
    return run, found


def _whole(store: Store, run: str) -> str:
    """The whole id of the run that this is, or is the beginning of."""
    return str(store.record(run)["id"])
