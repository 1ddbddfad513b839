"""Runs that were submitted, and the sites that take part in them: functions of a connection."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, func, insert, select, update

from insitu.core.errors import StoreError
from insitu.core.federation import Submitted
from insitu.core.part import to_json
from insitu.store.ledger.tables import rosters, submitted


def submit(connection: Connection, run: Submitted) -> None:
    if connection.scalar(select(submitted.c.run).where(submitted.c.run == run.run)) is not None:
        raise StoreError(f"a run {run.run!r} was submitted already: choose another id")
    last = connection.scalar(select(func.max(submitted.c.place)))
    row = {"run": run.run, "tables": to_json(run.tables), "submitter": run.by, "at": run.at, "status": run.status}
    connection.execute(insert(submitted), {**row, "reason": run.reason, "place": 0 if last is None else last + 1})


def mark(connection: Connection, run: str, status: str, reason: str) -> None:
    changed = update(submitted).where(submitted.c.run == run).values(status=status, reason=reason)
    if not connection.execute(changed).rowcount:
        raise StoreError(f"no run {run!r} was submitted: look at the ids of those that were")


def listed(connection: Connection) -> list[Submitted]:
    rows = connection.execute(select(submitted).order_by(submitted.c.place))
    return [Submitted(row.run, json.loads(row.tables), row.submitter, row.at, row.status, row.reason) for row in rows]


def admit(connection: Connection, run: str, names: Sequence[str], since: int) -> None:
    """Sites that take part already keep their places, and the round since when."""
    there = roster(connection, run)
    known = {site for site, _ in there}
    new = [name for name in dict.fromkeys(names) if name not in known]
    if new:
        rows = [{"run": run, "place": len(there) + i, "site": name, "since": since} for i, name in enumerate(new)]
        connection.execute(insert(rosters), rows)


def roster(connection: Connection, run: str) -> list[tuple[str, int]]:
    rows = connection.execute(select(rosters).where(rosters.c.run == run).order_by(rosters.c.place))
    return [(row.site, row.since) for row in rows]
