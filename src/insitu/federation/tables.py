"""A plan's tables, on their way from an operator's file to a run: what is whose, and what they build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from insitu.config import Config, of_tables, toml
from insitu.config.place import Place

OTHERS = {
    "data": "each site has its own, in its site.toml",
    "run.engine": "a federation has its own",
    "run.store": "the coordinator has its own",
    "run.memory_budget": "clients' memories stay on the sites",
}
"""What a plan's file may say for a run on one machine, and others decide in a federation."""
_NO_DATA = {"source": "the sites' own"}


def read(path: Path, changes: Iterable[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The tables of a plan's file without what others decide, and a sentence for each thing that was left out.

    Raises ConfigError where the file has a table or key of ``[run]`` that there is not. Parts are not made here: what
    they need may be installed on the coordinator and the sites only.
    """
    told = toml.override(toml.read(path), changes)
    tables, left_out = without_others(told)
    checked(tables, Place(path.name, path.absolute().parent))
    return tables, [f"{key} of {path.name} is left out: {OTHERS[key]}" for key in left_out]


def without_others(told: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tables without what others decide, and what that was."""
    tables = {name: dict(table) if isinstance(table, Mapping) else table for name, table in told.items()}
    left_out = []
    for key in OTHERS:
        name, _, inner = key.partition(".")
        if not inner and name in tables:
            del tables[name]
            left_out.append(key)
        elif inner and isinstance(tables.get(name), dict) and inner in tables[name]:
            del tables[name][inner]
            left_out.append(key)
    return tables, left_out


def checked(tables: Mapping[str, Any], place: Place) -> Config:
    """The configuration that these tables are; its ``plan()`` makes the parts. Raises ConfigError."""
    return of_tables({**tables, "data": _NO_DATA}, place=place)


def submitted(tables: Mapping[str, Any], run: str, code: Path) -> Config:
    """The configuration of a run; ``file.py:object`` in it is relative to the federation's folder for code."""
    return checked(tables, Place(f"run {run}", code.absolute()))
