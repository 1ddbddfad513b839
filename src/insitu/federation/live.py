"""One run at work: its thread's doings, and what is remembered of it for those who look on."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from insitu.core import events
from insitu.core.errors import Fenced, Halted, InsituError, StoreError
from insitu.core.events import Event
from insitu.core.federation import Submitted
from insitu.core.protocols import Store
from insitu.federation import tables

if TYPE_CHECKING:
    from insitu.federation.runs import Desk

SHOWN = (
    "RunStarted", "RoundStarted", "ClientFailed", "RoundCommitted", "RoundDiscarded", "Evaluated", "Notice",
    "RunFinished", "RunStopped", "RoundSealed",
)  # fmt: skip
"""The events that operators are told: not what single sites sent."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a run that the store held up is tried again, or a round that was void: doubled each time."""


class Live:
    """A run that is being trained."""

    def __init__(self, run: Submitted, desk: Desk) -> None:
        self.run, self._desk = run, desk
        self.thread: threading.Thread | None = None
        self.trouble = ""
        """What holds it up."""
        self.voids = self.retries = 0
        self._again = 0.0
        self._halted = threading.Event()
        self._why = ""
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def halt(self, why: str) -> None:
        """Asks it to leave off where it is."""
        self._why = why
        self._halted.set()
        self._desk.backend.halt(self.run.run, why)

    def events(self) -> list[dict[str, Any]]:
        """What happened so far, as operators are told it."""
        with self._lock:
            return list(self._events)

    def again(self) -> float | None:
        """Seconds until a void round is tried again; None where none is waited with."""
        left = self._again - time.monotonic()
        return left if left > 0 else None

    def go(self) -> tuple[str, str]:
        """Trains to the end: the status it has then and the reason, or an empty one where it was halted."""
        wait = FIRST_WAIT
        while True:
            try:
                self._once()
                return "finished", ""
            except Halted:
                return "", self._why
            except Fenced as error:
                return "", str(error)
            except StoreError as error:
                # A full disk or an absent database holds a run up, and does not end it.
                self.trouble = str(error)
                self._desk.tell("error", "run held up", run=self.run.run, error=self.trouble, again_in=wait)
            except InsituError as error:
                return "failed", f"{type(error).__name__}: {error}"
            except Exception as error:
                self._desk.tell("error", "run broke", run=self.run.run, error=repr(error))
                return "failed", f"{type(error).__name__}: {error}"
            if self._halted.wait(wait):
                return "", self._why
            wait = min(LONGEST_WAIT, 2 * wait)

    def _once(self) -> None:
        from insitu.run import run as execute

        desk, id = self._desk, self.run.run
        config = tables.submitted(self.run.tables, id, desk.code)
        plan = config.plan()
        self.retries = plan.policy.retries
        population, engine = desk.backend.population(id), desk.backend.engine(id, self.run.tables)
        known = any(one["id"] == id for one in desk.store.runs())
        if known:
            with self._lock:
                self._events = plain_events(desk.store, id)
            desk.store.update(id, clients=len(population))  # sites may have joined since
        if self._halted.is_set():
            raise Halted(self._why)
        result = execute(
            plan, population, rounds=config.run.rounds, seed=config.run.seed, engine=engine, store=desk.store,
            observers=[self._on, desk.observe], resume=id if known else None, id=id, stop=self._halted.is_set,
        )  # fmt: skip
        if result.status != "finished":
            raise Halted(self._why)

    def _on(self, event: Event) -> None:
        self.trouble = ""
        self._count(event)
        if isinstance(event, events.RoundSealed):
            sealed = {"run": event.run, "round": event.round, "accepted": event.accepted, "model": event.model}
            self._desk.note("coordinator", "round", {**sealed, "seal": event.digest()})
        if isinstance(event, events.RunStarted):
            told = plain_events(self._desk.store, self.run.run)
            with self._lock:
                self._events = told
        elif type(event).__name__ in SHOWN:
            with self._lock:
                self._events.append(trimmed(event.plain()))
        if isinstance(event, (events.RoundCommitted, events.RoundDiscarded, events.ClientFailed, events.Notice)):
            level = "info" if isinstance(event, events.RoundCommitted) else "warning"
            self._desk.tell(level, type(event).__name__, **{k: v for k, v in vars(event).items() if k != "measures"})
        self._desk.changes()
        if isinstance(event, events.RoundDiscarded) and self.voids <= self.retries:
            self._rest()

    def _rest(self) -> None:
        """Sites that all failed at once, or a network that is down, get time to come back before the next attempt."""
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.voids - 1))
        self._again = time.monotonic() + wait
        self._halted.wait(wait)

    def _count(self, event: Event) -> None:
        rounds = self._desk.rounds
        if isinstance(event, events.RoundCommitted):
            self.voids = 0
            rounds.commit(event.seconds)
        elif isinstance(event, events.RoundDiscarded):
            self.voids += 1
            rounds.discard()
        elif isinstance(event, events.ClientFailed):
            rounds.fail()


def plain_events(store: Store, run: str) -> list[dict[str, Any]]:
    """A run's events out of the store, as operators are told them; none where it has not begun."""
    if not any(one["id"] == run for one in store.runs()):
        return []
    return [trimmed(event) for event in store.events(run, kinds=SHOWN)]


def trimmed(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event without what it says of single sites, which a thousand of them would make long."""
    if event["event"] == "RoundSealed":
        return {**event, "accepted": len(event["accepted"])}
    return {key: value for key, value in event.items() if not (event["event"] == "Evaluated" and key == "clients")}
