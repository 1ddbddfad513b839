"""The runs of a federation: queue, threads, orders. Larger because one desk decides what becomes of every run."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from insitu.core.errors import InsituError, Refusal, StoreError
from insitu.core.events import Event
from insitu.core.federation import Ledger, Submitted
from insitu.core.protocols import Store
from insitu.federation import predicting, status, tables, telling
from insitu.federation.backend import Backend
from insitu.federation.live import Live, plain_events
from insitu.federation.logs import Tell
from insitu.federation.metrics import Rounds
from insitu.federation.settings import RunsTable
from insitu.federation.telling import ALIVE, Order, Told

TICK = 1.0
"""Seconds between two looks at who is enrolled, while a run waits for sites."""
MOST = 500
"""Events that are told at once."""


class Desk:
    """Starts, holds and ends runs. ``begin`` is called when this process leads, ``end`` when it no longer does.

    tell     the log; ``note`` the audit log: who, what, data
    observe  told of every event of every run, in the run's own thread
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        backend: Backend,
        settings: RunsTable,
        code: Path,
        tell: Tell,
        rounds: Rounds,
        note: Callable[[str, str, Mapping[str, Any]], None],
        observe: Callable[[Event], None] = lambda event: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.ledger, self.store, self.backend = ledger, store, backend
        self.settings, self.code, self.tell, self.rounds, self.now = settings, code, tell, rounds, now
        self.note, self.observe = note, observe
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._changing = threading.Lock()
        """Held while a run's status changes. It waits for the database, which nobody who only looks may have to."""
        self._runs: dict[str, Submitted] = {}
        self._live: dict[str, Live] = {}
        self._ending = False
        self._thread: threading.Thread | None = None
        self._predicting = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._told: dict[str, Told] = {}
        self.away: Callable[[], str] = str
        """Why the database cannot be asked; empty where it can."""

    # ------------------------------------------------------------ with the process

    def begin(self) -> None:
        """Takes up all runs that were queued or running."""
        runs = {run.run: run for run in self.ledger.submitted()}
        told: dict[str, Told] = {one["id"]: (one["rounds"], {}) for one in self.store.runs()}
        with self._lock:
            self._ending, self._runs, self._told = False, runs, told
        for run in list(runs.values()):
            if run.status == "stopping":
                self._mark(run.run, "stopped", run.reason)
        self._thread = threading.Thread(target=self._dispatch, name="runs", daemon=True)
        self._thread.start()

    def end(self, why: str, wait: float = 30.0) -> bool:
        """Halts all runs where they are, to be taken up again; whether all threads have ended in time."""
        until = time.monotonic() + wait
        with self._wake:
            self._ending = True
            live = list(self._live.values())
            self._wake.notify_all()
        for one in live:
            one.halt(why)
        threads = [one.thread for one in live if one.thread is not None]
        threads += [self._thread] if self._thread is not None else []
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    # ------------------------------------------------------------ what operators do

    def submit(self, told: Mapping[str, Any], name: str, by: str) -> str:
        """Checks the tables, puts a run into the queue, and returns its id."""
        own, _ = tables.without_others(told)
        run = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(self.now()))}-{secrets.token_hex(2)}"
        try:
            tables.submitted(own, run, self.code).plan()
        except InsituError as error:
            raise Refusal("BAD_REQUEST", f"the plan cannot be made on the coordinator: {error}") from error
        submitted = Submitted(run, own, by, self.now())
        self.ledger.submit(submitted)
        self.note(by, "submit", {"run": run, "name": name, "tables": own})
        with self._wake:
            self._runs[run] = submitted
            self._wake.notify_all()
        self.tell("info", "run submitted", run=run, by=by, name=name)
        return run

    def order(self, run: str, order: Order, by: str) -> str:
        """Stops, pauses or resumes a run, and returns its status."""
        with self._changing:
            with self._lock:
                submitted = self._known(run)
                run, before = submitted.run, submitted.status
                live = self._live.get(run)
            after = telling.after(order, before, live is not None)
            if after is None:
                raise Refusal("BAD_STATE", f"run {run} is {before}, and cannot be told to {order}")
            if after != before:
                self._mark(run, after, "" if order == "resume" else f"by {by}")
                self.note(by, order, {"run": run, "status": after})
                self.tell("info", f"run told to {order}", run=run, by=by)
            if live is not None and order != "resume":
                live.halt(f"told to {order} by {by}")
        with self._wake:
            self._wake.notify_all()
        self.changes()
        return after

    # ------------------------------------------------------------ what is told of runs

    def listing(self, remembered: bool = False) -> list[dict[str, Any]]:
        """All runs in short, newest first; ``remembered``: as this process knows them, without asking the database."""
        if remembered:
            with self._lock:
                return [telling.short(run, None) for run in reversed(self._runs.values())]
        known = {one["id"]: one for one in self.store.runs()}
        with self._lock:
            runs = list(self._runs.values()) or self.ledger.submitted()
        return [telling.short(run, known.get(run.run)) for run in reversed(runs)]

    def status(self, run: str) -> dict[str, Any]:
        """Why it is waiting, and all else that is known of it now."""
        with self._lock:
            submitted = self._known(run)
            live = self._live.get(submitted.run)
        committed, row = self._rounds(submitted.run, live)
        of = int((submitted.tables.get("run") or {}).get("rounds", 0))
        return status.compose(
            submitted.run, submitted.status, submitted.reason, committed=committed, of=of,
            call=self.backend.status(submitted.run) if live else {},
            voids=live.voids if live else 0, retries=live.retries if live else 0, again=live.again() if live else None,
            trouble=(live.trouble if live else "") or (self.away() if submitted.status in ALIVE else ""),
            starting=self._starting(submitted), history=row,
        )  # fmt: skip

    def ended(self, run: str) -> bool:
        """Whether nothing more will happen in this run, unless somebody orders it."""
        with self._lock:
            submitted = self._known(run)
            return submitted.status in ("finished", "stopped", "failed") and submitted.run not in self._live

    def events(self, run: str, after: int) -> tuple[list[dict[str, Any]], int]:
        """Events after the one of this number, and the number of the last that is told."""
        with self._lock:
            submitted = self._known(run)
            live = self._live.get(submitted.run)
        found = live.events() if live else plain_events(self.store, submitted.run)
        if after > len(found):
            after = 0  # rounds that were not committed were forgotten in a restart: told anew
        last = min(len(found), after + MOST)
        return [{"seq": after + 1 + i, **event} for i, event in enumerate(found[after:last])], last

    def model(self, run: str) -> bytes:
        """The variables after the last committed round."""
        with self._lock:
            submitted = self._known(run)
        return predicting.variables(submitted, self.store, self.code)

    def predict(self, run: str, body: bytes, by: str) -> bytes:
        """Predictions for the examples in a body, both as ``core/wire`` bytes."""
        with self._lock:
            submitted = self._known(run)
            if submitted.run in self._live:
                raise Refusal("BAD_STATE", f"run {submitted.run} is trained just now: pause it, or wait for its end")
        with self._predicting:
            id, backend = submitted.run, self.backend
            backend.release(id)
            try:
                checkpoint = self.store.load(id) if any(one["id"] == id for one in self.store.runs()) else None
                engine, population = backend.engine(id, submitted.tables), backend.population(id)
                found = predicting.predicted(submitted, checkpoint, population, engine, self.code, body)
            finally:
                if submitted.status == "finished":
                    backend.finished(id)
        self.note(by, "predict", {"run": id, "bytes": len(body)})
        return found

    async def changed(self, wait: float) -> None:
        """Returns when something has happened in a run, or after so many seconds (one at most: nobody is forgotten)."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def told() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be gone by then
                loop.call_soon_threadsafe(event.set)

        with self._lock:
            self._listeners.append(told)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), min(wait, 1.0))
        finally:
            with self._lock:
                self._listeners.remove(told)

    def changes(self) -> None:
        """Something has happened: whoever waits for that is told."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def ending(self) -> bool:
        """Whether nothing more will happen here."""
        return self._ending

    def live(self) -> int:
        """Runs that are trained now."""
        with self._lock:
            return len(self._live)

    def counted(self) -> dict[str, int]:
        """Runs by status, those that have not ended even where there are none."""
        with self._lock:
            return {"queued": 0, "running": 0, "paused": 0, **Counter(run.status for run in self._runs.values())}

    # ------------------------------------------------------------ the queue

    def _dispatch(self) -> None:
        while True:
            with self._wake:
                if self._ending:
                    return
                waiting = [run for run in self._runs.values() if self._startable(run)]
                room = self.settings.at_once - len(self._live)
            try:
                if waiting:
                    declared, enrolled = self._sites()
                    for run in waiting[: max(0, room)]:
                        if self._ready(run, declared, enrolled):
                            self._start(run)
            except StoreError as error:
                self.tell("error", "the queue cannot be worked off", error=str(error))
            with self._wake:
                if not self._ending:
                    self._wake.wait(TICK if waiting else 60.0)

    def _startable(self, run: Submitted) -> bool:
        return run.status in ("queued", "running") and run.run not in self._live

    def _sites(self) -> tuple[list[str], list[str]]:
        members = [m for m in self.ledger.members() if m.role == "site" and m.revoked is None]
        return [m.name for m in members if m.declared], [m.name for m in members]

    def _ready(self, run: Submitted, declared: list[str], enrolled: list[str]) -> bool:
        if self.ledger.roster(run.run):
            return True
        if len(declared) < self.settings.sites:
            return False
        if len(declared) < len(enrolled) and self.now() - run.at < self.settings.patience:
            return False
        self.ledger.admit(run.run, declared, 1)
        return True

    def _start(self, run: Submitted) -> None:
        with self._changing:
            with self._lock:
                if self._ending or not self._startable(self._runs[run.run]):
                    return
            self._mark(run.run, "running")
            self.backend.release(run.run)
            with self._lock:
                if self._ending:  # a restart takes it up
                    return
                live = self._live[run.run] = Live(run, self)
                live.thread = threading.Thread(target=self._train, args=(live,), name=f"run {run.run}", daemon=True)
                live.thread.start()

    def _train(self, live: Live) -> None:
        run = live.run.run
        outcome, reason = live.go()
        self._rounds(run, live)
        with self._changing:
            with self._lock:
                self._live.pop(run, None)
                if not outcome and self._runs[run].status == "stopping" and not self._ending:
                    outcome, reason = "stopped", self._runs[run].reason
            if outcome:
                with contextlib.suppress(StoreError):  # as a restart finds it, it is taken up again and ends again
                    self._mark(run, outcome, reason)
        with self._wake:
            self._wake.notify_all()
        if outcome == "finished":
            self.backend.finished(run)
        self.tell("info", "run ended" if outcome else "run halted", run=run, status=outcome, reason=reason)
        self.changes()

    # ------------------------------------------------------------ small things

    def _known(self, run: str) -> Submitted:
        """The run that has this id, alone begins with it, or is ``last``."""
        runs = self._runs or {one.run: one for one in self.ledger.submitted()}
        found = [one for key, one in runs.items() if run and key.startswith(run)]
        if run in runs or (run == "last" and runs):
            return runs[run] if run in runs else list(runs.values())[-1]
        if len(found) != 1:
            why = f"{len(found)} runs begin with it" if found else "see `insitu runs --federation FOLDER`"
            raise Refusal("NOT_FOUND", f"there is no run {run[:60]!r}: {why}")
        return found[0]

    def _mark(self, run: str, status: str, reason: str = "") -> None:
        self.ledger.mark(run, status, reason)
        with self._lock:
            old = self._runs[run]
            self._runs[run] = Submitted(old.run, old.tables, old.by, old.at, status, reason)

    def _rounds(self, run: str, live: Live | None) -> Told:
        """See :data:`insitu.federation.telling.Told`; while the database is away, as it was told last."""
        if live is None and self.away():
            return self._told.get(run, (0, {}))
        self._told[run] = telling.rounds(live.events() if live else plain_events(self.store, run))
        return self._told[run]

    def _starting(self, run: Submitted) -> str:
        if run.status != "queued" or self.away():
            return "it starts once the database answers" if run.status == "queued" else ""
        return telling.starting(run, *self._sites(), self.settings, self.now())
