"""A run's description: the document out of which a site builds the plan by itself, and knows that it is the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from insitu.core.errors import PlanError, Refusal
from insitu.core.part import plain
from insitu.core.types import Schema, Variables
from insitu.engines.https.wire.manifest import canonical, is_digest
from insitu.engines.https.wire.packing import PROTOCOL
from insitu.rounds.plan import Plan
from insitu.version import __version__

TABLES = ("algorithm", "learner", "stages", "reduce", "cohort", "policy", "run")
"""The tables of a configuration that make a plan; others say where data are, and where a run is kept."""
OF_RUN = ("rounds", "seed", "evaluate_every", "evaluate_cohort", "block")
"""The keys of ``[run]`` that belong to a plan."""
_KEYS = {"protocol", "run", "tables", "seed", "schema", "plan", "config", "versions", "code"}


def make(
    run: str, tables: Mapping[str, Any], plan: Plan, start: Variables | None, seed: int, schema: Schema,
    code: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """The description of a run.

    tables  of the configuration that ``plan`` was made of; those that sites have no use for are left out
    start   the learner's variables before training, which are part of the plan's digest
    code    SHA-256 of the file of each reference to code that does not come with insitu
    """
    kept = {name: plain(tables[name]) for name in TABLES if tables.get(name) not in (None, [], {})}
    kept["run"] = {name: value for name, value in kept.get("run", {}).items() if name in OF_RUN}
    if "algorithm" not in kept:
        raise PlanError("a run's tables have no [algorithm]: give the tables of a configuration file")
    return {
        "protocol": PROTOCOL,
        "run": run,
        "tables": kept,
        "seed": seed,
        "schema": {
            "features": None if schema.features is None else list(schema.features),
            "classes": None if schema.classes is None else schema.classes.tolist(),
        },
        "plan": plan.digest(start),
        "config": plain(plan.config()),
        "versions": versions(),
        "code": dict(sorted(code.items())),
    }


def text_of(description: Mapping[str, Any]) -> str:
    """The document as it is kept; its SHA-256 is its name. Raises PlanError for numbers that JSON has not."""
    try:
        return canonical(description)
    except ValueError as error:
        raise PlanError(f"the plan has a number that is not finite, and cannot be told to sites: {error}") from error


def checked(value: Any) -> dict[str, Any]:
    """The description, if it has the form of one. Raises Refusal BAD_MANIFEST, naming the field, or VERSION.

    What is in its tables is not looked at: a site's own rules and its configuration's reader do that.
    """
    _want(isinstance(value, dict), "it is no object")
    if type(value.get("protocol")) is int and abs(value["protocol"] - PROTOCOL) > 1:
        raise Refusal("VERSION", f"the run's description is of protocol {value['protocol']}, and here is {PROTOCOL}")
    missing = sorted(_KEYS - value.keys())
    _want(not missing, f"it lacks {', '.join(missing)}")
    _want(type(value["protocol"]) is int, "protocol is no number")
    _want(isinstance(value["run"], str) and 0 < len(value["run"]) <= 200, "run is no name")
    _want(type(value["seed"]) is int, "seed is no whole number")
    _want(is_digest(value["plan"]), "plan is no SHA-256")
    for name in ("tables", "schema", "config", "versions", "code"):
        _want(isinstance(value[name], dict), f"{name} is no object")
    _want(set(value["tables"]) <= set(TABLES), f"tables are {sorted(map(str, value['tables']))[:12]}")
    _want(all(isinstance(v, str) for v in value["versions"].values()), "versions are no text")
    _want(all(is_digest(v) for v in value["code"].values()), "code has what is no SHA-256")
    features, classes = value["schema"].get("features"), value["schema"].get("classes")
    _want(_all(features, int) and all(n >= 0 for n in features or ()), "schema.features are no sizes")
    _want(_all(classes, int) or _all(classes, str), "schema.classes are no labels")
    return value  # type: ignore[no-any-return]


def versions() -> dict[str, str]:
    """What is installed that decides an answer's bits."""
    found = {"insitu": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in ("numpy", "torch", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _all(values: Any, kind: type) -> bool:
    return values is None or (isinstance(values, list) and all(type(v) is kind for v in values))


def _want(right: bool, otherwise: str) -> None:
    if not right:
        raise Refusal("BAD_MANIFEST", f"the run's description is refused: {otherwise}")
