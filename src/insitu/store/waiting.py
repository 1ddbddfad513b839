"""What a run has told and the file does not hold yet, and how its share of a transaction is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Executable, Table, bindparam, delete, insert, update
from sqlalchemy.dialects import postgresql, sqlite

from insitu.core.events import Event
from insitu.core.protocols import Checkpoint
from insitu.core.tree import Tree
from insitu.store import rows, schema

TOGETHER = 256
"""Memories that are written with one statement, and encoded at once."""
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_FORGET_MEMORY = delete(schema.memories).where(
    schema.memories.c.run == bindparam("of_run"), schema.memories.c.client == bindparam("of_client")
)


@dataclass
class Waiting:
    """``seq`` is the number of the last event, ``durable`` the last round that is on disk.

    ``whole`` counts the first of ``events`` that belong to committed rounds.
    """

    seq: int
    durable: int
    events: list[tuple[int, Event]] = field(default_factory=list)
    whole: int = 0
    checkpoint: Checkpoint | None = None
    memories: dict[str, Mapping[str, Tree | None]] = field(default_factory=dict)
    """By client the checkpoint's mapping that its memory is read from when it is written, from disk perhaps."""

    def __bool__(self) -> bool:
        return bool(self.events or self.checkpoint)

    def take(self, event: Event) -> None:
        """Numbers an event and keeps it."""
        self.seq += 1
        self.events.append((self.seq, event))

    def commit(self, checkpoint: Checkpoint) -> None:
        """Keeps a round's checkpoint in the place of the one before it; the events so far go with it."""
        self.checkpoint, self.whole = checkpoint, len(self.events)
        self.memories.update(dict.fromkeys(checkpoint.memories, checkpoint.memories))

    def clear(self, events: int) -> None:
        """So many events and the checkpoint are on disk now; memories whose checkpoint is still to come are not."""
        self.events, self.whole = self.events[events:], max(0, self.whole - events)
        if self.checkpoint:
            self.durable, self.checkpoint, self.memories = self.checkpoint.round, None, {}


@dataclass
class Prepared:
    """The rows of one run, as far as possible made before the write lock is taken; a large model's as they are written,
    which takes longer than making them and would take its room once more."""

    run: str
    events: rows.EventRows
    checkpoint: rows.Blob | None
    memories: Mapping[str, Mapping[str, Tree | None]]
    columns: dict[str, Any]
    """What changes in the run's own row."""


def prepare(run: str, waiting: Waiting, *, whole: bool) -> Prepared:
    """The rows of what is waiting, ``whole``: without the events of a round that is under way.

    Raises WireError for a state that is not a tree.
    """
    ready = waiting.events[: waiting.whole] if whole else waiting.events
    prepared = Prepared(run, rows.of_events(run, ready), None, {}, {})
    done = waiting.checkpoint
    if done is not None:
        whole = {"round": done.round, "state": done.state, "stages": done.stages, "finished": done.finished}
        prepared.checkpoint = rows.Blob({"run": run, "round": done.round}, whole)
        prepared.memories = waiting.memories
        prepared.columns = {"rounds": done.round, **({"status": "finished"} if done.finished else {})}
    return prepared


def write(connection: Connection, prepared: Prepared, writer: str) -> bool:
    """Writes the rows; False, and nothing written, where the run belongs to another writer.

    Writing the same events again changes nothing, so a commit of which it is not known whether it reached the
    disk may simply be repeated. Raises WireError for a memory that is not a tree.
    """
    run, own = prepared.run, schema.runs.c
    mine = update(schema.runs).where(own.id == run, own.writer == writer)
    if not connection.execute(mine.values(writer=writer, **prepared.columns)).rowcount:
        return False
    _write_events(connection, prepared)
    if prepared.checkpoint is not None:
        connection.execute(delete(schema.checkpoints).where(schema.checkpoints.c.run == run))
        for part in prepared.checkpoint:
            connection.execute(insert(schema.checkpoints), part)
    _write_memories(connection, prepared)
    return True


def _write_memories(connection: Connection, prepared: Prepared) -> None:
    """A few at a time: all of a large cohort's memories together may not fit into this process's."""
    clients = list(prepared.memories)
    for at in range(0, len(clients), TOGETHER):
        some = clients[at : at + TOGETHER]
        connection.execute(_FORGET_MEMORY, [{"of_run": prepared.run, "of_client": client} for client in some])
        found: list[rows.Row] = []
        for client in some:
            key = {"run": prepared.run, "client": client, "round": prepared.columns["rounds"]}
            found.extend(rows.Blob(key, prepared.memories[client][client]))
        connection.execute(insert(schema.memories), found)


def _write_events(connection: Connection, prepared: Prepared) -> None:
    new = prepared.events
    for table, values in ((schema.events, new.events), (schema.round_metrics, list(new.rounds.values()))):
        if values:
            connection.execute(_upsert(connection, table), values)


def _upsert(connection: Connection, table: Table) -> Executable:
    """Inserts a row, or takes the place of the one with its key."""
    made = _INSERTS[connection.dialect.name](table)
    others = {column.name: made.excluded[column.name] for column in table.columns if not column.primary_key}
    return made.on_conflict_do_update(index_elements=list(table.primary_key), set_=others)
