"""run(): the only long-lived loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from insitu.core import checks, events, spans
from insitu.core.errors import Halted, ResumeError, RoundError, StoreError
from insitu.core.protocols import Answering, Checkpoint, Engine, Session, Setting, Store, Waits
from insitu.core.types import Data, Population
from insitu.history import History
from insitu.inputs import (
    check_arguments,
    check_clients,
    chosen_engine,
    evaluation_data,
    opened_store,
    reading,
    usual_observers,
)  # fmt: skip
from insitu.interrupt import Interrupt
from insitu.record import HISTORY, matching, new_id, restored, versions
from insitu.replay import arrivals
from insitu.result import Result
from insitu.rounds import evaluate as measuring
from insitu.rounds.arrivals import Record
from insitu.rounds.memory import Memories, usual_budget
from insitu.rounds.outcome import Model, Outcome, rested
from insitu.rounds.plan import Plan
from insitu.rounds.server import Server
from insitu.seals import Seals
from insitu.together import compare, dismiss, followed, going_on, unfinished


def run(
    plan: Plan,
    clients: Population,
    *,
    rounds: int,
    engine: str | Engine | None = None,
    seed: int = 0,
    evaluate: Any = None,
    evaluate_every: int | None = None,
    store: str | Path | Store | None = "runs/insitu.db",
    observers: Iterable[Callable[[events.Event], None]] | None = None,
    resume: str | None = None,
    memory_budget: int | str | None = None,
    id: str | None = None,
    stop: Callable[[], bool] | None = None,
    replay: str | None = None,
) -> Result:
    """Trains by a plan on clients' data, and returns the result.

    rounds          rounds to be committed in all, those before a resume included
    engine          "inline", "debug", "vectorized", "processes", or such an object; None: the fastest that the plan
                    allows, which is named and recorded
    seed            every random choice derives from it; the same seed and choices give the same bits
    evaluate        a central test set (x, y), or Data; beside it, clients that hold out data are asked for theirs
    evaluate_every  overrides the plan's
    store           a file for the record, checkpoints and metrics, or a Store; None: nothing is written
    observers       called with every event; None prints a few lines to stderr
    resume          the id of a run in the store: goes on where it was, with the same parts given again
    memory_budget   bytes, or text such as "512MB": what clients keep between rounds (SCAFFOLD's control variates,
                    personal layers) is in memory up to it, in a temporary file beyond; None: a quarter of the memory
    id              what a new run is called; None: the time and four random digits
    stop            asked before every round: where it says True, the run stops there as after Ctrl-C
    replay          the id of a run in the store whose rounds were in real time: the same clients arrive in each round,
                    from the same versions, which gives the same bits; a new run is made of it

    Raises PlanError, DataError, ResumeError, StoreError, or RoundError when rounds keep missing their quorum. Ctrl-C
    stops after the present round (the result's status is then "stopped"); a second one stops at once.
    """
    check_arguments(plan, clients, rounds, seed)
    if evaluate_every is not None:
        plan = replace(plan, evaluate_every=evaluate_every)
    budget = usual_budget() if memory_budget is None else checks.size(memory_budget=memory_budget)
    with spans.span("start", "check"):
        plan = plan.resolve(clients.schema())
        test = evaluation_data(plan, evaluate)
        check_clients(plan, clients, int(seed))
        if resume is None or engine is not None:
            engine = chosen_engine(engine, plan, len(clients), None)  # a plan that is refused leaves no store behind
        ranks = engine.ranks() if engine else None
    if ranks and ranks.rank:
        store, observers, replay = None, [], None  # rank 0 keeps the store, and says what there is to say
    with Interrupt() as interrupt, opened_store(store) as opened, reading(clients):
        return _Loop(plan, clients, rounds, int(seed), test, interrupt, budget, id, stop, replay).go(
            engine, opened, observers, resume
        )


@dataclass
class _Loop:
    plan: Plan
    clients: Population
    rounds: int
    seed: int
    test: Data | None
    interrupt: Interrupt
    budget: int
    new_id: str | None = None
    stop: Callable[[], bool] | None = None
    replay: str | None = None

    def go(self, engine: Any, store: Store | None, observers: Any, resume: str | None) -> Result:
        self.history, self.store, self._wanted = History(), store, False
        self._observers = list(usual_observers() if observers is None else observers)
        with spans.span("start", "first parameters"):
            start = None if self.plan.learner is None else self.plan.learner.init(self.seed)
            digest = self.plan.digest(start)
        self.ranks = engine.ranks() if engine else None
        if self.ranks:
            compare(self.ranks, self.plan, self.clients, start, {**self._record(digest), "rounds": self.rounds})
            if store and resume is None:
                resume, self.replay = unfinished(store, self.ranks.launch(), digest, self.replay)
        if resume is not None and store is None and not self._follows():
            raise ResumeError(f"resume={resume!r} needs the store that holds the run: give store=…")
        record = None if resume is None or store is None else matching(store, resume, self._record(digest))
        self.replay, arrived = arrivals(self.plan, store, self.replay, record, self._record(digest))
        engine = chosen_engine(engine, self.plan, len(self.clients), record)
        self.id = record["id"] if record else self.new_id or new_id()
        self._seals = Seals(self.id, store)
        checkpoint = store.load(self.id) if record and store else None
        memories = Memories(checkpoint.memories if checkpoint else None, self.budget)
        self._started, self._pending = False, list[events.Event]()  # what is to be said once the run has started
        same = record is not None and record["engine"] == engine.config()
        known, stored = record["choices"] if record and same else {}, store is not None
        done = checkpoint.round if checkpoint else 0
        if self.ranks:
            self.id, known, stored = self.ranks.first([self.id, known, stored], "learning which run this is")
        setting = Setting(self.plan, self.clients, memories, self.rounds, self.seed, known, self._notice, stored, done)
        with spans.span("start", f"open {engine.part_name()}"):
            session = engine.open(setting)
        try:
            choices = {"engine": engine.part_name(), **session.choices}
            if store and not record:
                self._create(store, digest, engine, session)
            model = restored(self.plan, store, self.id, start, checkpoint, self.history, resumed=record is not None)
            if self.ranks:
                model = going_on(self.ranks, model, self.history)
            self._emit(
                events.RunStarted(
                    self.id, model.version, engine.part_name(), self.rounds, len(self.clients), choices,
                    resume is not None,
                )
            )  # fmt: skip
            self._started = True
            for notice in self._pending:
                self._emit(notice)
            if store and record:
                store.update(self.id, rounds=self.rounds, engine=engine.config(), choices=session.choices)
            server = self._server(session, memories, model, arrived)
            first = [model]
            del start, checkpoint, model  # they would take their room for as long as the run goes on
            return self._train(server, first.pop(), choices, engine)
        except BaseException as error:
            self._broken(error)
            raise
        finally:
            with spans.span("other", f"close {engine.part_name()}"):
                session.close()
            if store:
                with spans.span("store", "flush"):
                    store.flush()

    def _create(self, store: Store, digest: str, engine: Engine, session: Session) -> None:
        chosen = {"engine": engine.config(), "choices": session.choices}
        with spans.span("store", "create"):
            store.create(self.id, {**self._record(digest), **chosen})

    def _train(self, server: Server, model: Model, choices: dict[str, Any], engine: Engine) -> Result:
        began, status = time.monotonic(), "finished"
        if (ended := followed(server.session, self.history, self._is_wanted)) is not None:
            model, status = ended
        while ended is None and model.version < self.rounds:
            if self._is_wanted() if self.ranks is None else self._wanted:
                status = "stopped"
                break
            model = rested(server.session, model)
            model = self._commit(server, model, self._round(server, model))
            self._keep(server, model)  # by now the model before it has given its room back
        if status == "finished":
            self._emit(events.RunFinished(self.id, model.version, time.monotonic() - began))
        else:
            reason = f"interrupted after round {model.version} of {self.rounds}; to go on: {self._how_to_resume()}"
            self._emit(events.RunStopped(self.id, model.version, reason))
        if self.store:
            with spans.span("store", "finish"):
                self.store.update(self.id, status=status, choices=server.session.choices)
                self.store.flush()
        dismiss(server.session, model, status, self.history)
        return Result(
            self.id, status, model.version, self.history, {**choices, **server.session.choices}, self.plan,
            self.seed, model.state, server.memories, self.clients, engine,
        )  # fmt: skip

    def _round(self, server: Server, model: Model) -> tuple[Outcome, float]:
        """One committed round; void ones before it are reported and drawn anew."""
        round = model.version + 1
        attempts = 1 if self.plan.policy.missed == "stop" else self.plan.policy.retries + 1
        for attempt in range(attempts):
            began = time.monotonic()
            with spans.span("other", f"round {round}"):
                outcome = server.run_round(model, round, attempt)
            for failure in outcome.failures:
                self._emit(events.ClientFailed(self.id, round, failure.client, failure.error))
            if outcome.model is not None:
                return outcome, time.monotonic() - began
            self._emit(events.RoundDiscarded(self.id, round, outcome.reason))
            model = outcome.spent or model  # a void round costs simulated time
        first = (
            f"; first failure: client {outcome.failures[0].client!r}: {outcome.failures[0].error}"
            if outcome.failures
            else ""
        )
        raise RoundError(
            f"round {round} was void {attempts} time{'s' * (attempts > 1)} ({outcome.reason}{first}); the model is"
            f" that of round {model.version}. Mend the clients, or change Policy(quorum=…, retries=…)"
        )

    def _commit(self, server: Server, model: Model, done: tuple[Outcome, float]) -> Model:
        outcome, seconds = done
        assert outcome.model is not None
        before, model, down = model, outcome.model, outcome.bytes_down
        names, rows = measuring.rows(outcome.reports)
        self._emit(events.UpdatesArrived(self.id, model.version, names, rows, down))
        if outcome.arrivals:
            self._emit(events.Arrivals(self.id, model.version, outcome.arrivals))
        self._emit(
            events.RoundCommitted(
                self.id, model.version, len(outcome.reports), len(outcome.failures), seconds,
                measuring.pooled(outcome.reports), sum(r.bytes_up for r in outcome.reports),
                down * outcome.asked, {**outcome.measures, **self.plan.algorithm.measures(model.state)},
            )
        )  # fmt: skip
        if isinstance(server.session, Waits):
            self._emit(self._seals.seal(server.session, before, outcome))
        every = self.plan.evaluate_every
        if every and (model.version % every == 0 or model.version == self.rounds):
            with spans.span("evaluate", f"evaluate round {model.version}"):
                self._evaluate(server, model)
        if self.ranks:
            self._wanted, sent = self.ranks.settle(self._is_wanted())
            self._emit(events.WireBytes(self.id, model.version, sent))
        return model

    def _keep(self, server: Server, model: Model) -> None:
        if self.store is None:
            return
        finished = model.version == self.rounds
        aside = {"stages": model.stages, "pending": model.pending}
        with spans.span("store", "commit"):
            changed = server.memories.changed()
            self.store.commit(self.id, Checkpoint(model.version, model.state, aside, changed, finished))

    def _is_wanted(self) -> bool:
        """Whether somebody wants the run to stop."""
        return self.interrupt.wanted or (self.stop is not None and self.stop())

    def _follows(self) -> bool:
        """Whether this is a rank that learns from rank 0 where to go on."""
        return self.ranks is not None and self.ranks.rank > 0

    def _server(self, session: Session, memories: Memories, model: Model, record: Record | None) -> Server:
        clock = self.ranks.clock if self.ranks else time.monotonic
        if isinstance(session, Waits):
            clock = session.clock
        at_work = model.pending if self.plan.buffered is not None and self.plan.buffered.real else {}
        return Server(
            self.id, self.plan, session, self.clients, memories, self.seed, clock, self._asked, self.rounds, at_work,
            record,
        )  # fmt: skip

    def _asked(self, round: int, asked: int) -> None:
        self._emit(events.RoundStarted(self.id, round, asked))

    def _broken(self, error: BaseException) -> None:
        """The run ends with an exception: other ranks, observers and the store are told, as far as they can be."""
        halted = isinstance(error, Halted)
        text = str(error) if halted else f"{type(error).__name__}: {error}".splitlines()[0]
        if self.ranks:
            self.ranks.leave(text)
        with suppress(StoreError, ResumeError):  # a run that could not even be created is in no store
            done = len(self.history)
            self._emit(events.RunStopped(self.id, done, f"{text}; {done} rounds are committed"))
            if self.store:
                status = "stopped" if halted or isinstance(error, KeyboardInterrupt) else "failed"
                self.store.update(self.id, status=status)

    def _evaluate(self, server: Server, model: Model) -> None:
        if self.test is not None:
            metrics = measuring.central(server, model, self.test)
            self._emit(events.Evaluated(self.id, model.version, "central", metrics))
        if self.clients.has_holdout() and not isinstance(self.plan.algorithm, Answering):
            metrics, by_client, failures = measuring.federated(server, model)
            for failure in failures:
                self._emit(events.ClientFailed(self.id, model.version, failure.client, failure.error))
            spread = measuring.spread(by_client)
            self._emit(events.Evaluated(self.id, model.version, "clients", metrics, by_client, spread))

    def _emit(self, event: events.Event) -> None:
        self.history.take(event.plain()) if isinstance(event, HISTORY) else None
        if self.store:
            with spans.span("store", "event"):
                self.store.event(self.id, event)
        for observer in list(self._observers):
            try:
                with spans.span("other", "observer"):
                    observer(event)
            except Exception as error:
                # A log that is full or a screen that is gone has no effect on rounds, even where warnings are errors.
                self._observers.remove(observer)
                with warnings.catch_warnings():
                    warnings.simplefilter("always")
                    warnings.warn(f"observer {observer!r} failed and is left out from here on: {error!r}", stacklevel=2)

    def _notice(self, text: str) -> None:
        notice = events.Notice(self.id, len(self.history), text)
        if self._started:
            self._emit(notice)
        else:
            self._pending.append(notice)

    def _record(self, digest: str) -> dict[str, Any]:
        return {
            "digest": digest,
            "config": self.plan.config(),
            "seed": self.seed,
            "rounds": self.rounds,
            "clients": len(self.clients),
            "versions": versions(),
            "launch": (self.ranks.launch() or (None,))[0] if self.ranks else None,
            **({"replay": self.replay} if self.replay else {}),
        }

    def _how_to_resume(self) -> str:
        if self.store is None:
            return "nothing was stored (store=None), so this run cannot be resumed"
        return f"insitu.run(…, resume={self.id!r}), or insitu run FILE --resume {self.id}"
