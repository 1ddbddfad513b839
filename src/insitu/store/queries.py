"""What is read from the tables: functions of a connection, whose transaction is the caller's."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, or_, select

from insitu.core.errors import ResumeError
from insitu.store.rows import number
from insitu.store.schema import checkpoints, memories, round_metrics, runs


def row(connection: Connection, run: str) -> Row[Any]:
    """The run's row; the id is known to exist."""
    return connection.execute(select(runs).where(runs.c.id == run)).one()


def find(connection: Connection, run: str, place: str) -> str:
    """The id that ``run`` is or begins. Raises ResumeError, naming the nearest, where there is none."""
    begins = func.substr(runs.c.id, 1, len(run)) == run  # LIKE would not tell a from A
    found = connection.scalars(select(runs.c.id).where(or_(runs.c.id == run, begins))).all()
    if run in found:
        return run
    if run and len(found) == 1:
        return str(found[0])
    everything = connection.scalars(select(runs.c.id).order_by(runs.c.created.desc())).all()
    raise ResumeError(f"{place} has {_none_such(run, found if run else [], everything)}")


def _none_such(run: str, found: Sequence[str], everything: Sequence[str]) -> str:
    if found:
        return f"{len(found)} runs that begin with {run!r} ({', '.join(found[:5])}): give more of the id"
    if not everything:
        return f"no run {run!r}, nor any other: check the path"
    near = difflib.get_close_matches(run, everything, n=1, cutoff=0)[0]
    return f"no run {run!r}; the nearest of its {len(everything)} is {near!r}: take that, or another"


def listing(connection: Connection) -> list[dict[str, Any]]:
    """All runs, newest first, each with the last round metrics of each kind."""
    of = round_metrics.c
    last = select(of.run, of.kind, func.max(of.round).label("round")).group_by(of.run, of.kind).subquery()
    same = (of.run == last.c.run) & (of.kind == last.c.kind) & (of.round == last.c.round)
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for one in connection.execute(select(round_metrics).join(last, same)):
        metrics.setdefault(one.run, {}).setdefault(one.kind, {})[one.name] = number(one.value)
    return [
        {
            "id": one.id,
            "started": one.created,
            "status": one.status,
            "rounds": one.rounds,
            "config": json.loads(one.record).get("config"),
            "metrics": metrics.get(one.id, {}),
        }
        for one in connection.execute(select(runs).order_by(runs.c.created.desc()))
    ]


class Stored(NamedTuple):
    """A checkpoint as it lies in the tables: blobs in parts, in order."""

    round: int
    parts: list[bytes]
    memories: dict[str, list[bytes]]


def stored(connection: Connection, run: str) -> Stored | None:
    """The run's checkpoint and all its memories; None before the first round."""
    mine = select(checkpoints).where(checkpoints.c.run == run).order_by(checkpoints.c.part)
    parts = connection.execute(mine).all()
    if not parts:
        return None
    by_client: dict[str, list[bytes]] = {}
    kept = select(memories).where(memories.c.run == run).order_by(memories.c.client, memories.c.part)
    for one in connection.execute(kept):
        by_client.setdefault(one.client, []).append(one.blob)
    return Stored(parts[0].round, [part.blob for part in parts], by_client)
