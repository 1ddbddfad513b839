"""What a run has told and the file does not hold yet, and how its share of a transaction is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, update

from insitu.core.events import Event
from insitu.core.protocols import Checkpoint
from insitu.core.tree import Tree
from insitu.store import rows, schema

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
    memories: dict[str, Tree | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.events or self.checkpoint)

    def take(self, event: Event) -> None:
        """Numbers an event and keeps it."""
        self.seq += 1
        self.events.append((self.seq, event))

    def commit(self, checkpoint: Checkpoint) -> None:
        """Keeps a round's checkpoint in the place of the one before it; the events so far go with it."""
        self.checkpoint, self.whole = checkpoint, len(self.events)
        self.memories.update(checkpoint.memories)

    def clear(self, events: int) -> None:
        """So many events and the checkpoint are on disk now; memories whose checkpoint is still to come are not."""
        self.events, self.whole = self.events[events:], max(0, self.whole - events)
        if self.checkpoint:
            self.durable, self.checkpoint, self.memories = self.checkpoint.round, None, {}


@dataclass
class Prepared:
    """The rows of one run, made before the write lock is taken: encoding a large model takes a while."""

    run: str
    events: rows.EventRows
    checkpoint: list[rows.Row]
    memories: list[rows.Row]
    columns: dict[str, Any]
    """What changes in the run's own row."""


def prepare(run: str, waiting: Waiting, *, whole: bool) -> Prepared:
    """The rows of what is waiting, ``whole``: without the events of a round that is under way.

    Raises WireError for a state or memory that is not a tree.
    """
    ready = waiting.events[: waiting.whole] if whole else waiting.events
    prepared = Prepared(run, rows.of_events(run, ready), [], [], {})
    done = waiting.checkpoint
    if done is not None:
        whole = {"round": done.round, "state": done.state, "stages": done.stages, "finished": done.finished}
        prepared.checkpoint = rows.of_blob({"run": run, "round": done.round}, whole)
        for client, memory in waiting.memories.items():
            key = {"run": run, "client": client, "round": done.round}
            prepared.memories.extend(rows.of_blob(key, memory))
        prepared.columns = {"rounds": done.round, **({"status": "finished"} if done.finished else {})}
    return prepared


def write(connection: Connection, prepared: Prepared, writer: str) -> bool:
    """Writes the rows; False, and nothing written, where the run belongs to another writer.

    Writing the same events again changes nothing, so a commit of which it is not known whether it reached the
    disk may simply be repeated.
    """
    run, own = prepared.run, schema.runs.c
    mine = update(schema.runs).where(own.id == run, own.writer == writer)
    if not connection.execute(mine.values(writer=writer, **prepared.columns)).rowcount:
        return False
    _write_events(connection, prepared)
    if prepared.checkpoint:
        connection.execute(delete(schema.checkpoints).where(schema.checkpoints.c.run == run))
        connection.execute(insert(schema.checkpoints), prepared.checkpoint)
    if prepared.memories:
        clients = {row["client"] for row in prepared.memories}
        connection.execute(_FORGET_MEMORY, [{"of_run": run, "of_client": client} for client in clients])
        connection.execute(insert(schema.memories), prepared.memories)
    return True


def _write_events(connection: Connection, prepared: Prepared) -> None:
    new = prepared.events
    for table, values in ((schema.events, new.events), (schema.round_metrics, list(new.rounds.values()))):
        if values:
            connection.execute(insert(table).prefix_with("OR REPLACE"), values)
