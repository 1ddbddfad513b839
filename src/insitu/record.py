"""The record of a run: what is written down of it, and whether a run may go on from it."""

from __future__ import annotations

import platform
import secrets
import time
from importlib import metadata
from typing import Any

from insitu.core.errors import ResumeError
from insitu.core.protocols import Store
from insitu.version import __version__


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


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = {**old, **new}
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    return [] if old == new else [f"{path} was {old!r}, is {new!r}"]
