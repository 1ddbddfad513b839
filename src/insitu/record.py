"""The record of a run: what is written down of it, whether a run may go on from it, and where."""

from __future__ import annotations

import platform
import secrets
import time
from importlib import metadata
from typing import Any

from insitu.core import events
from insitu.core.errors import ResumeError
from insitu.core.protocols import Checkpoint, Store
from insitu.core.types import Variables
from insitu.history import History
from insitu.rounds.outcome import Model
from insitu.rounds.plan import Plan
from insitu.version import __version__

HISTORY = (events.RoundCommitted, events.Evaluated, events.WireBytes)
"""The events that make up the history."""


def new_id() -> str:
    """What a run is called that was given no id: when it began, and four random digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def versions() -> dict[str, str]:
    """The versions that decide an answer's bits."""
    found = {"insitu": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in ("numpy", "torch", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def matching(store: Store, resume: str, now: dict[str, Any]) -> dict[str, Any]:
    """The record of the run to be resumed, which must be of the same plan, seed and population."""
    record = store.record(resume)
    for name in ("seed", "clients"):
        if record[name] != now[name]:
            raise ResumeError(f"run {record['id']} has {name}={record[name]}, not {now[name]}: give the same {name}")
    if record["digest"] != now["digest"]:
        changed = _differences(record["config"], now["config"])
        what = "; ".join(changed) or "the learner's first parameters differ"
        raise ResumeError(f"run {record['id']} was made by another plan ({what}): give the same plan, or start anew")
    return record


def restored(
    plan: Plan, store: Store | None, run: str, start: Variables | None, checkpoint: Checkpoint | None,
    history: History, *, resumed: bool,
) -> Model:  # fmt: skip
    """The model that a run goes on from, and the history so far; the first one, out of ``start``, where it is new."""
    if store is None:
        return Model(0, plan.algorithm.init(start))
    if checkpoint is None:
        if resumed:
            store.rewind(run, 0)
        store.flush()
        return Model(0, plan.algorithm.init(start))
    store.rewind(run, checkpoint.round)
    for event in store.events(run, kinds=[kind.__name__ for kind in HISTORY]):
        history.take(event)
    aside: Any = checkpoint.stages
    return Model(checkpoint.round, checkpoint.state, dict(aside["stages"]), dict(aside["pending"]))


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = {**old, **new}
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    return [] if old == new else [f"{path} was {old!r}, is {new!r}"]
