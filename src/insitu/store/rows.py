"""Events, records and trees as rows: pure functions, which know nothing of files or transactions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from insitu.core import wire
from insitu.core.errors import WireError
from insitu.core.events import Evaluated, Event, RoundCommitted
from insitu.core.part import to_json
from insitu.core.protocols import Checkpoint

PART = 4 * 2**20
"""Bytes of a blob in one row: SQLite copies each as a whole, and does not give that room back."""

Row = dict[str, Any]
_METRICS = ("metrics", "clients", "spread", "measures", "rows")
"""An event's fields whose numbers are floats at every depth, so that a null in them was not finite."""


@dataclass
class EventRows:
    """The rows of some events. What single clients told lies in the events alone: there may be millions of it."""

    events: list[Row] = field(default_factory=list)
    rounds: dict[tuple[int, str, str], Row] = field(default_factory=dict)


def of_events(run: str, numbered: Iterable[tuple[int, Event]]) -> EventRows:
    """The rows of events and their numbers, which are in order."""
    rows = EventRows()
    for seq, event in numbered:
        data = {name: value for name, value in vars(event).items() if name not in ("run", "round")}
        kind, round = type(event).__name__, event.round
        rows.events.append({"run": run, "seq": seq, "round": round, "kind": kind, "data": to_json(data)})
        if isinstance(event, RoundCommitted):
            _round(rows, run, round, "train", event.metrics)
            _round(rows, run, round, "measures", event.measures)
        elif isinstance(event, Evaluated):
            _round(rows, run, round, event.where, event.metrics)
    return rows


def _round(rows: EventRows, run: str, round: int, kind: str, metrics: Mapping[str, Any]) -> None:
    for name, value in metrics.items():
        row = {"run": run, "round": round, "kind": kind, "name": name}
        rows.rounds[round, kind, name] = {**row, "value": _finite(value)}


def to_event(run: str, round: int, kind: str, data: str) -> dict[str, Any]:
    """What ``Event.plain()`` was; metrics that were not finite come back as NaN."""
    fields = json.loads(data)
    if "null" in data:
        fields |= {name: _nan_for_null(fields[name]) for name in _METRICS if name in fields}
    return {"event": kind, "run": run, "round": round, **fields}


def _nan_for_null(x: Any) -> Any:
    if isinstance(x, list):
        return [_nan_for_null(value) for value in x]
    return {key: _nan_for_null(value) for key, value in x.items()} if isinstance(x, dict) else number(x)


def number(stored: Any) -> Any:
    """A metric as it is read: NULL stands for what was not finite."""
    return math.nan if stored is None else stored


def _finite(x: Any) -> float | None:
    value = float(x)
    return value if math.isfinite(value) else None


class Blob:
    """A tree as rows, ``key`` and the part's number in each, made one at a time whenever they are gone through.

    The tree's arrays must not change meanwhile. Raises WireError for what is not a tree.
    """

    def __init__(self, key: Row, tree: Any) -> None:
        self._key, self._buffers = key, wire.frame(tree)[0]

    def __iter__(self) -> Iterator[Row]:
        for i, piece in enumerate(wire.cut(wire.signed(self._buffers), PART)):
            yield {**self._key, "part": i, "blob": piece}


def to_checkpoint(round: int, parts: list[bytes], memories: Mapping[str, list[bytes]]) -> Checkpoint:
    """The checkpoint out of its parts. Raises WireError, saying which, where one is damaged or missing."""
    whole = _to_tree(parts, "its checkpoint")
    if not isinstance(whole, dict) or whole.get("round") != round:
        raise WireError("its checkpoint is of another round: restore a copy of the file")
    found = {client: _to_tree(blob, f"the memory of {client!r}") for client, blob in memories.items()}
    return Checkpoint(round, whole["state"], whole["stages"], found, whole["finished"])


def _to_tree(parts: list[bytes], what: str) -> Any:
    try:
        return wire.decode(b"".join(parts))
    except WireError as error:
        raise WireError(f"{what} cannot be read: {error}") from error
