"""Calls and what happened in them: functions of a connection, whose transaction is the caller's."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, or_, select

from insitu.core.errors import StoreError
from insitu.core.federation import Call, CallKey, Entry
from insitu.core.part import to_json
from insitu.store.ledger.tables import calls, documents, entries

CLOSED = "closed"
ASIDE = ("evaluate", "predict")
"""Kinds of calls of which no round is made: when they are closed, nobody asks for them again."""
TOGETHER = 500
"""Documents that are removed with one statement."""


def open_call(connection: Connection, call: Call) -> None:
    key = call.key
    if connection.execute(select(calls.c.place).where(_of(calls, key))).one_or_none() is not None:
        raise StoreError(f"{_named(key)} was opened already: go on with it as it is in the ledger")
    last = connection.scalar(select(func.max(calls.c.place)).where(calls.c.run == key.run))
    row = {"asked": to_json(list(call.asked)), "message": to_json(dict(call.message)), "opened": call.opened}
    connection.execute(insert(calls), {**key._asdict(), **row, "place": 0 if last is None else last + 1})
    if call.entries:
        append(connection, key, call.entries)


def append(connection: Connection, key: CallKey, new: Sequence[Entry]) -> None:
    if not new:
        return
    if connection.execute(select(calls.c.place).where(_of(calls, key))).one_or_none() is None:
        raise StoreError(f"{_named(key)} is not in the ledger: open it first")
    last = connection.scalar(select(func.max(entries.c.seq)).where(_of(entries, key)))
    after = 0 if last is None else int(last) + 1
    for i, entry in enumerate(new):
        if entry.seq != after + i:
            raise StoreError(f"{_named(key)} goes on with entry {after + i}, not {entry.seq}: read it again")
    _refuse_twice(connection, key, [entry.client for entry in new if entry.client])
    rows = [{**key._asdict(), **_row(entry)} for entry in new]
    connection.execute(insert(entries), rows)


def _refuse_twice(connection: Connection, key: CallKey, clients: list[str]) -> None:
    twice = {client for client in clients if clients.count(client) > 1} if len(set(clients)) < len(clients) else set()
    if clients:
        same = select(entries.c.client).where(_of(entries, key), entries.c.client.in_(clients))
        twice |= set(connection.scalars(same))
    if twice:
        raise StoreError(f"{_named(key)} has an entry of {min(twice)!r} already: a client has one in each call")


def _row(entry: Entry) -> dict[str, Any]:
    row = {"seq": entry.seq, "what": entry.kind, "client": entry.client, "now": entry.now}
    return {**row, "data": to_json(dict(entry.data))}


def listed(connection: Connection, run: str) -> list[Call]:
    told: dict[CallKey, list[Entry]] = {}
    for row in connection.execute(select(entries).where(entries.c.run == run).order_by(entries.c.seq)):
        entry = Entry(row.seq, row.what, row.client, row.now, json.loads(row.data))
        told.setdefault(CallKey(row.run, row.round, row.kind, row.number), []).append(entry)
    found = []
    for row in connection.execute(select(calls).where(calls.c.run == run).order_by(calls.c.place)):
        key = CallKey(row.run, row.round, row.kind, row.number)
        asked, message = json.loads(row.asked), json.loads(row.message)
        found.append(Call(key, asked, message, row.opened, told.get(key, [])))
    return found


def forget(connection: Connection, run: str, before: int) -> None:
    """Drops calls of rounds before ``before``, and those to evaluate and to predict that are closed."""
    ended = select(entries.c.round, entries.c.kind, entries.c.number).where(
        entries.c.run == run, entries.c.kind.in_(ASIDE), entries.c.what == CLOSED
    )
    closed = {(row.round, row.kind, row.number) for row in connection.execute(ended)}
    for table in (entries, calls):
        old = [table.c.round < before]
        old += [
            and_(table.c.kind == kind, table.c.round == round, table.c.number == number)
            for round, kind, number in closed
            if round >= before
        ]
        connection.execute(delete(table).where(table.c.run == run, or_(*old)))


def discard(connection: Connection, run: str, digests: Collection[str] | None) -> int:
    """Removes documents that no call names: these, or all that the run was the first to have; how many."""
    if digests is None:
        digests = set(connection.scalars(select(documents.c.digest).where(documents.c.run == run)))
    # A message may be another run's as well; an update's manifest names its task, and so is of one call.
    named = {digest for text in connection.scalars(select(calls.c.message)) for digest in json.loads(text).values()}
    accepted = select(entries.c.data).where(entries.c.run == run, entries.c.what == "accepted")
    named |= {json.loads(text).get("manifest") for text in connection.scalars(accepted)}
    useless = sorted(set(digests) - named)
    removed = 0
    for at in range(0, len(useless), TOGETHER):
        some = documents.c.digest.in_(useless[at : at + TOGETHER])
        removed += connection.execute(delete(documents).where(some)).rowcount
    return removed


def _of(table: Table, key: CallKey) -> ColumnElement[bool]:
    of = table.c
    return and_(of.run == key.run, of.round == key.round, of.kind == key.kind, of.number == key.number)


def _named(key: CallKey) -> str:
    return f"run {key.run!r}, round {key.round}: call {key.number} to {key.kind}"
