"""The run store over any database that SQLAlchemy reaches: written behind by a second, whole at every moment."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Self

from sqlalchemy import Connection, delete, func, insert, select, update

from insitu.core import spans
from insitu.core.errors import StoreError, WireError
from insitu.core.events import Event
from insitu.core.part import to_json
from insitu.core.protocols import Checkpoint
from insitu.store import queries, rows, schema
from insitu.store.database.base import Database, T
from insitu.store.waiting import Prepared, Waiting, prepare, write

_OUTSIDE = ("id", "started", "status")  # what record() tells that lies in columns, not in the record's JSON


Fence = Callable[[Connection], None]
"""Raises Fenced, in a transaction that is about to write, where somebody else leads."""


class SqlStore:
    """Runs in ``database``.

    A committed round is on the disk a second (``behind``) later at most: ``commit`` writes when so much time has passed
    since the last write, or the run has finished; otherwise a thread does when it is over. Each write is one
    transaction, synced to the disk, with the events, metrics, checkpoint and changed memories of whole rounds. Trees
    that were committed are held until then and must not be changed in place.

    - Several processes may use it at once, each for runs of its own. A run belongs to the store that
      created or rewound it last: another one that goes on writing it gets a StoreError, so that its history
      never forks.
    - Wherever a run's id is wanted, the beginning of it will do if no other id begins so.
    - When a write fails (disk full), nothing of it is there; what it held is kept for the next one. Where the
      thread's failed, the next ``commit`` or ``flush`` tries again and says what is wrong.

    - With a ``fence`` every write checks first, in its own transaction, that its coordinator still leads.

    Raises StoreError where it cannot be used, saying what is safe and what to do; ResumeError for an id
    that no run has, naming the nearest.
    """

    def __init__(
        self, database: Database, *, behind: timedelta = timedelta(seconds=1), fence: Fence | None = None
    ) -> None:
        self.behind = behind
        self._database = database
        self._fence = fence
        self._me = uuid.uuid4().hex
        self._waiting: dict[str, Waiting] = {}
        self._lost: set[str] = set()
        self._last_write = time.monotonic()
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ the record

    def create(self, run: str, record: Mapping[str, Any]) -> None:
        """A new run with its record, durable on return. Raises StoreError where the id is taken."""
        row = {"id": run, "status": record.get("status", "running"), "rounds": 0, "writer": self._me}
        row |= {"created": datetime.now(UTC).isoformat(), "record": _json(record)}

        def work(connection: Connection) -> None:
            if connection.scalar(select(schema.runs.c.id).where(schema.runs.c.id == run)) is not None:
                raise StoreError(f"{self._database.place} has a run {run!r} already: resume it, or choose another id")
            connection.execute(insert(schema.runs), row)

        with self._lock:
            self._write(work)
        self._waiting[run] = Waiting(seq=0, durable=0)

    def record(self, run: str) -> dict[str, Any]:
        """The record, with the full ``id``, when the run ``started`` (UTC, ISO 8601) and its ``status``."""
        run = self._full(run)
        row = self._database.read(lambda connection: queries.row(connection, run))
        return {**json.loads(row.record), "id": run, "started": row.created, "status": row.status}

    def update(self, run: str, **fields: Any) -> None:
        """Changes fields of the record, durable on return together with everything that was waiting."""
        run = self._full(run)
        self._refuse_lost(run)

        def work(connection: Connection) -> None:
            row = queries.row(connection, run)
            record = _json({**json.loads(row.record), **fields})
            values = {"record": record, "status": fields.get("status", row.status)}
            connection.execute(update(schema.runs).where(schema.runs.c.id == run).values(values))

        self._write_behind(work)

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first.

        Each is ``id``, ``started``, ``status``, ``rounds`` (committed and durable), ``config`` and
        ``metrics``: the last of each kind, ``{"train": {name: value}, "central": …, "clients": …}``;
        ``measures`` is the kind of those that the algorithm takes of its state.
        """
        self.flush()
        return self._database.read(queries.listing)

    # ------------------------------------------------------------ what happens in a run

    def event(self, run: str, event: Event) -> None:
        """Appends an event; it becomes durable with the next write."""
        with self._lock:
            self._mine(run).take(event)

    def commit(self, run: str, checkpoint: Checkpoint) -> None:
        """Takes a committed round. Memories of clients that are not in it stay as they are."""
        with self._lock:
            self._mine(run).commit(checkpoint)
            left = self._last_write + self.behind.total_seconds() - time.monotonic()
            if checkpoint.finished or left <= 0:
                self.flush()
            elif self._timer is None:
                self._timer = threading.Timer(left, copy_context().run, (self._when_due,))
                self._timer.daemon = True  # what a process leaves behind by ending at once is computed again
                self._timer.start()

    def flush(self) -> None:
        """Makes everything taken so far durable, the events of a round that is under way included."""
        with self._lock:
            if any(self._waiting.values()):
                self._write_behind()

    def close(self) -> None:
        """Flushes and lets go of the database; another call opens it again."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self.flush()
            self._database.close()

    # ------------------------------------------------------------ going on with a run

    def load(self, run: str) -> Checkpoint | None:
        """The last checkpoint with all memories, durable on return; None before the first round.

        Raises StoreError, naming run and round, where a digest shows damage.
        """
        run = self._full(run)
        self.flush()
        stored = self._database.read(lambda connection: queries.stored(connection, run))
        if stored is None:
            return None
        try:
            return rows.to_checkpoint(*stored)
        except WireError as error:
            raise StoreError(f"{self._database.place}, run {run!r}, round {stored.round}: {error}") from error

    def events(
        self, run: str, *, until_round: int | None = None, kinds: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """The run's events as plain data, in order, or those of some kinds (``"RoundCommitted"``).

        Metrics that were not finite come back as NaN.
        """
        run = self._full(run)
        self.flush()
        of = schema.events.c
        query = select(of.round, of.kind, of.data).where(of.run == run).order_by(of.seq)
        if kinds is not None:
            query = query.where(of.kind.in_(kinds))
        if until_round is not None:
            query = query.where(of.round <= until_round)
        found = self._database.read(lambda connection: connection.execute(query).all())
        return [rows.to_event(run, *row) for row in found]

    def rewind(self, run: str, round: int) -> None:
        """Forgets events and metrics of rounds after ``round``: this store goes on writing from there.

        Raises StoreError for a round before the checkpoint's, for only the newest is kept; 0 starts afresh.
        """
        run = self._full(run)

        def work(connection: Connection) -> Waiting:
            durable = queries.row(connection, run).rounds
            if 0 < round < durable:
                raise StoreError(
                    f"run {run!r} is at round {durable} and cannot go back to {round}, for only its newest "
                    "checkpoint is kept: start a new run"
                )
            for table in (schema.events, schema.round_metrics):
                connection.execute(delete(table).where(table.c.run == run, table.c.round > round))
            if round == 0:
                for table in (schema.checkpoints, schema.memories):
                    connection.execute(delete(table).where(table.c.run == run))
            values = {"status": "running", "rounds": min(durable, round)}
            connection.execute(update(schema.runs).where(schema.runs.c.id == run).values(values))
            return self._claim(connection, run)

        with self._lock:
            self._waiting[run] = self._write_behind(work)
        self._lost.discard(run)

    # ------------------------------------------------------------ ids and ownership

    def _full(self, run: str) -> str:
        """The id that ``run`` is, or is the beginning of."""
        if run in self._waiting:
            return run
        return self._database.read(lambda connection: queries.find(connection, run, self._database.place))

    def _mine(self, run: str) -> Waiting:
        """What is waiting of a run that this store writes, which it takes over where it did not before."""
        if run not in self._waiting:
            run = self._full(run)
        if run not in self._waiting:
            self._refuse_lost(run)
            self._waiting[run] = self._write(partial(self._claim, run=run))
        return self._waiting[run]

    def _claim(self, connection: Connection, run: str) -> Waiting:
        connection.execute(update(schema.runs).where(schema.runs.c.id == run).values(writer=self._me))
        last = select(func.max(schema.events.c.seq)).where(schema.events.c.run == run)
        return Waiting(seq=connection.scalar(last) or 0, durable=queries.row(connection, run).rounds)

    def _refuse_lost(self, run: str) -> None:
        if run in self._lost:
            raise StoreError(
                f"run {run!r} was resumed by another process, to which it now belongs: end this one, "
                f"or resume it here with resume={run!r} once the other has ended"
            )

    # ------------------------------------------------------------ transactions

    def _when_due(self) -> None:
        """What the timer's thread does: whole rounds alone, since whoever finds the file wants no half of one."""
        with self._lock:
            self._timer = None
            if any(waiting.checkpoint for waiting in self._waiting.values()):
                # All is kept where this fails, and it is overdue: the run's own next commit tries, and raises.
                with suppress(StoreError), spans.span("store", "write behind"):
                    self._write_behind(whole=True)

    def _write_behind(self, work: Callable[[Connection], T] | None = None, *, whole: bool = False) -> T | None:
        """A transaction that holds everything that was waiting (of ``whole`` rounds), and ``work``'s part."""
        with self._lock:
            prepared = [self._prepared(run, waiting, whole) for run, waiting in self._waiting.items() if waiting]

            def everything(connection: Connection) -> T | None:
                for share in prepared:
                    if not self._written(connection, share, whole):
                        raise _Lost(share.run)
                return None if work is None else work(connection)

            try:
                result = self._write(everything)
            except _Lost as lost:
                del self._waiting[lost.run]
                self._lost.add(lost.run)
                self._refuse_lost(lost.run)
                raise
            for share in prepared:
                self._waiting[share.run].clear(len(share.events.events))
            self._last_write = time.monotonic()
            return result

    def _write(self, work: Callable[[Connection], T]) -> T:
        def fenced(connection: Connection) -> T:
            if self._fence is not None:
                self._fence(connection)
            return work(connection)

        return self._database.write(fenced, self._safe)

    def _prepared(self, run: str, waiting: Waiting, whole: bool) -> Prepared:
        try:
            return prepare(run, waiting, whole=whole)
        except WireError as error:
            raise self._unwritable(run, whole, error) from error

    def _written(self, connection: Connection, share: Prepared, whole: bool) -> bool:
        try:
            return write(connection, share, self._me)
        except WireError as error:
            raise self._unwritable(share.run, whole, error) from error

    def _unwritable(self, run: str, whole: bool, error: WireError) -> StoreError:
        waiting = self._waiting[run]
        if not whole:
            waiting.checkpoint = None  # it can never be written, as who asks now is told; the events still can
        return StoreError(f"run {run!r} cannot be stored after round {waiting.durable}: {error}")

    def _safe(self) -> str:
        unsafe = {run: waiting.durable for run, waiting in self._waiting.items() if waiting}
        if not unsafe:
            return "Nothing in it has changed."
        safe = ", ".join(f"run {run!r} is durable up to round {round}" for run, round in unsafe.items())
        return f"{safe}; what came later is kept in memory for the next write: try again, or resume from there."


class _Lost(Exception):
    """The run belongs to another writer, so that the transaction ends."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run


def _json(record: Mapping[str, Any]) -> str:
    return to_json({key: value for key, value in record.items() if key not in _OUTSIDE})
