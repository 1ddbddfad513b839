"""The embedded store: everything in one SQLite file, written behind by a second, whole at every moment."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, delete, func, insert, select, update

from insitu.core import spans
from insitu.core.errors import StoreError, WireError
from insitu.core.events import Event
from insitu.core.part import to_json
from insitu.core.protocols import Checkpoint
from insitu.store import queries, rows, schema
from insitu.store.database import Database
from insitu.store.waiting import Prepared, Waiting, prepare, write

_OUTSIDE = ("id", "started", "status")  # what record() tells that lies in columns, not in the record's JSON


class SqliteStore:
    """Runs in one SQLite file, made with its folders where it is not there.

    A committed round is on the disk a second (``behind``) later at most: ``commit`` writes when so much time has passed
    since the last write, or the run has finished; otherwise a thread does when it is over. Each write is one
    transaction, synced to the disk, with the events, metrics, checkpoint and changed memories of whole rounds. Trees
    that were committed are held until then and must not be changed in place.

    - Several processes may use a file at once, each for runs of its own. A run belongs to the store that
      created or rewound it last: another one that goes on writing it gets a StoreError, so that its history
      never forks.
    - Wherever a run's id is wanted, the beginning of it will do if no other id begins so.
    - When a write fails (disk full), nothing of it is in the file; what it held is kept for the next one. Where the
      thread's failed, the next ``commit`` or ``flush`` tries again and says what is wrong.

    Raises StoreError where the file cannot be used, saying what is safe and what to do; ResumeError for an id
    that no run has, naming the nearest.
    """

    def __init__(self, path: str | Path, *, behind: timedelta = timedelta(seconds=1)) -> None:
        self.path = Path(path)
        self.behind = behind
        self._database = Database(self.path)
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
        with self._lock, self._database.writing(self._safe) as connection:
            if connection.scalar(select(schema.runs.c.id).where(schema.runs.c.id == run)) is not None:
                raise StoreError(f"{self.path} has a run {run!r} already: resume it, or choose another id")
            connection.execute(insert(schema.runs), row)
        self._waiting[run] = Waiting(seq=0, durable=0)

    def record(self, run: str) -> dict[str, Any]:
        """The record, with the full ``id``, when the run ``started`` (UTC, ISO 8601) and its ``status``."""
        run = self._full(run)
        with self._database.reading() as connection:
            row = queries.row(connection, run)
        return {**json.loads(row.record), "id": run, "started": row.created, "status": row.status}

    def update(self, run: str, **fields: Any) -> None:
        """Changes fields of the record, durable on return together with everything that was waiting."""
        run = self._full(run)
        self._refuse_lost(run)
        with self._write_behind() as connection:
            row = queries.row(connection, run)
            record = _json({**json.loads(row.record), **fields})
            values = {"record": record, "status": fields.get("status", row.status)}
            connection.execute(update(schema.runs).where(schema.runs.c.id == run).values(values))

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first.

        Each is ``id``, ``started``, ``status``, ``rounds`` (committed and durable), ``config`` and
        ``metrics``: the last of each kind, ``{"train": {name: value}, "central": …, "clients": …}``;
        ``measures`` is the kind of those that the algorithm takes of its state.
        """
        self.flush()
        with self._database.reading() as connection:
            return queries.listing(connection)

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
                with self._write_behind():
                    pass

    def close(self) -> None:
        """Flushes and lets go of the file; another call opens it again."""
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
        with self._database.reading() as connection:
            stored = queries.stored(connection, run)
        if stored is None:
            return None
        try:
            return rows.to_checkpoint(*stored)
        except WireError as error:
            raise StoreError(f"{self.path}, run {run!r}, round {stored.round}: {error}") from error

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
        with self._database.reading() as connection:
            return [rows.to_event(run, *row) for row in connection.execute(query)]

    def rewind(self, run: str, round: int) -> None:
        """Forgets events and metrics of rounds after ``round``: this store goes on writing from there.

        Raises StoreError for a round before the checkpoint's, for only the newest is kept; 0 starts afresh.
        """
        run = self._full(run)
        with self._lock, self._write_behind() as connection:
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
            waiting = self._claim(connection, run)
        self._waiting[run] = waiting
        self._lost.discard(run)

    # ------------------------------------------------------------ ids and ownership

    def _full(self, run: str) -> str:
        """The id that ``run`` is, or is the beginning of."""
        if run in self._waiting:
            return run
        with self._database.reading() as connection:
            return queries.find(connection, run, self.path)

    def _mine(self, run: str) -> Waiting:
        """What is waiting of a run that this store writes, which it takes over where it did not before."""
        if run not in self._waiting:
            run = self._full(run)
        if run not in self._waiting:
            self._refuse_lost(run)
            with self._database.writing(self._safe) as connection:
                waiting = self._claim(connection, run)
            self._waiting[run] = waiting
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
                with suppress(StoreError), spans.span("store", "write behind"), self._write_behind(whole=True):
                    pass

    @contextmanager
    def _write_behind(self, *, whole: bool = False) -> Iterator[Connection]:
        """A transaction that holds everything that was waiting (of ``whole`` rounds), and what the caller adds."""
        with self._lock:
            prepared = [self._prepared(run, waiting, whole) for run, waiting in self._waiting.items() if waiting]
            with self._database.writing(self._safe) as connection:
                for share in prepared:
                    if not self._written(connection, share, whole):
                        del self._waiting[share.run]
                        self._lost.add(share.run)
                        self._refuse_lost(share.run)
                yield connection
            for share in prepared:
                self._waiting[share.run].clear(len(share.events.events))
            self._last_write = time.monotonic()

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


def _json(record: Mapping[str, Any]) -> str:
    return to_json({key: value for key, value in record.items() if key not in _OUTSIDE})
