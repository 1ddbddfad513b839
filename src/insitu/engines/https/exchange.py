"""Where runs and sites meet: tasks go out, updates come in, durable first.

Lives on one asyncio loop and uses nothing else of the world: time is the loop's, the disk is behind ``durably`` and
``aside``. ``status`` and ``contacts`` may be called from any thread, everything else on the loop only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from insitu.core import failpoints
from insitu.core.errors import Fenced, Halted, Refusal, StoreError
from insitu.core.federation import Blobs, Call, CallKey, Entry, Ledger
from insitu.engines.https.calls import machine, telling
from insitu.engines.https.calls.accounts import Ask, Attached, Declared, Told
from insitu.engines.https.calls.book import Book
from insitu.engines.https.calls.holding import Holding
from insitu.engines.https.calls.intake import Intake
from insitu.engines.https.calls.leftovers import Leftovers
from insitu.engines.https.calls.machine import Asks, Closes, Fails, HandsOut, Lives
from insitu.engines.https.calls.open_call import AGAIN, Bell, OpenCall
from insitu.engines.https.calls.papers import Durably, Papers, named
from insitu.engines.https.calls.presence import Presence
from insitu.engines.https.calls.shelf import Shelf
from insitu.engines.https.calls.values import task_id
from insitu.rounds.plan import Plan

SHUT_OUT = "REVOKED: the site's certificate was revoked"


class Exchange(Intake):
    """All calls of all runs of a coordinator, and the updates that come in for them.

    durably  runs what reads and writes the ledger, which may block, off the loop
    aside    runs what reads and writes chunks, as well
    wall     seconds since 1970, for people to read
    lease    seconds without a word after which a site that is at work counts as away
    poll     seconds for which a question for work is held at most
    largest  bytes that an update may have
    say      told what happens: a level, a sentence, fields
    """

    def __init__(
        self, ledger: Ledger, blobs: Blobs, *, durably: Durably, aside: Durably, wall: Callable[[], float] = time.time,
        lease: float = 60.0, poll: float = 50.0, largest: int = 2 * 2**30,
        say: Callable[..., None] = lambda level, text, **fields: None,
    ) -> None:  # fmt: skip
        shelf = Shelf(blobs)
        book = Book(shelf)
        runs: dict[str, Attached] = {}
        super().__init__(ledger, blobs, shelf, book, runs, Presence(), durably, aside, largest, say)
        self.wall, self.lease, self.poll = wall, lease, poll
        self._papers = Papers(ledger, durably)
        self._book: Book = book
        self._runs: dict[str, Attached] = runs
        self._halted: dict[str, str] = {}
        self._bells: dict[str, Bell] = {}
        self._shut_out: set[str] = set()
        self._holding = Holding(ledger, shelf, self._papers, durably, book)
        self.leftovers = Leftovers(ledger, shelf)
        self._draining = False

    # ------------------------------------------------------------ a run's side

    async def attach(self, run: str, plan: Plan, description: str, declared: Declared) -> None:
        """A run begins or goes on. Raises StoreError."""
        calls, members = await self._durably(lambda: (self.ledger.calls(run), self.ledger.members()))
        self._shut_out |= {member.name for member in members if member.revoked is not None}
        for call in self._book.of_run(run):
            if call.broken is not None:
                self._book.drop(call.call.key, rubbish=False)  # who knows what another coordinator needs
        known = {call.key: call for call in calls if call.key not in self._book}
        await self._holding.hold(known.values())
        self._runs[run] = Attached(plan, description, declared, known)

    def detach(self, run: str) -> None:
        """A run ends or halts. Time stands still for its calls; what sites still send for them counts."""
        for call in self._book.of_run(run):
            call.hold()

    async def open(self, key: CallKey, asks: Sequence[Ask], wanted: int) -> bool:
        """Opens a call; True where it had been opened before, and goes on or is as it ended. Raises StoreError."""
        run = self._runs[key.run]
        asked, message = [ask.client for ask in asks], {ask.client: ask.message for ask in asks}
        here = self._book.get(key)
        call = here.call if here is not None else run.known.pop(key, None)
        before = call is not None
        if call is None:
            call = await self._opened(Call(key, asked, message, self.wall()))
        elif list(call.asked) != asked or dict(call.message) != message:
            raise StoreError(
                f"{_named(key)} asked other clients, or other things, before the restart: the code or the roster has"
                " changed since; stop this run and start it anew"
            )
        if here is None:
            here = await self._taken_up(run, call, asks, wanted)
        here.go_on()
        for client in asked:
            if client in self._shut_out and here.state.who[client].seq < 0 and not here.state.ends:
                await here.happen(Fails(client, SHUT_OUT))
            self._bell(client).ring()
        return before

    async def take(self, key: CallKey) -> Told | None:
        """The next client of whom all is known, in the cohort's order; None: nothing more will come.

        Raises Halted where the run is to leave off, and StoreError where the call cannot go on here.
        """
        run, call = self._runs[key.run], self._book[key]
        while True:
            if key.run in self._halted:
                raise Halted(self._halted[key.run])
            if call.broken is not None:
                raise call.broken
            ready = call.ready()
            if call.told < len(ready):
                call.told += 1
                return await self._told(call, ready[call.told - 1])
            if call.state.ends:
                return None
            heard = [call.bell.heard(), run.bell.heard()]
            await asyncio.wait(heard, return_when=asyncio.FIRST_COMPLETED)
            for future in heard:
                future.cancel()

    async def close(self, key: CallKey, reason: str) -> None:
        """A call has ended: written down, once. Late answers are refused from here on. Raises StoreError."""
        call = self._book[key]
        if not call.closed:
            await call.happen(Closes(reason))
            call.closed = True
        failpoints.hit("call.closed")
        call.end()

    async def forget(self, run: str, before: int, ended: bool = False) -> None:
        """Calls of rounds before ``before`` are dropped, with the documents that only they name.

        Where the run has ``ended``, all to evaluate and to predict are as well. Chunks of their updates go with the
        shelf's next ``clear``.
        """

        def goes(key: CallKey) -> bool:
            return key.round < before or (ended and key.kind != "train")

        attached = self._runs.get(run)
        if attached is not None:
            known = attached.known
        else:  # nobody has worked on it since this process began
            known = {call.key: call for call in await self._durably(lambda: self.ledger.calls(run))}
        old = {key: call for key, call in known.items() if goes(key)}  # of a process before this one
        await self._holding.hold(known.values())
        await self._holding.take_stock()
        here = [call for call in self._book.of_run(run) if goes(call.call.key)]
        for documents in (*map(named, old.values()), *(call.documents() for call in here)):
            self.leftovers.note(run, documents)
        await self._durably(lambda: self.ledger.forget(run, before))
        for call in here:
            self._book.drop(call.call.key)
        for key in old:
            self._holding.forgotten(key)
            known.pop(key, None)
        await self._durably(lambda: self.leftovers.discard(run))

    async def needed(self) -> set[str]:
        """Every chunk that a run may want again which is not finished: what a sweep of the blobs has to keep."""
        return self.shelf.used() | await self._papers.needed() | self.shelf.used()

    def halt(self, run: str, why: str) -> None:
        """The run's ``take`` raises Halted, now or when it is called; nothing is handed out for it meanwhile."""
        self._halted[run] = why
        if run in self._runs:
            self._runs[run].bell.ring()

    def release(self, run: str) -> None:
        """Undoes ``halt``."""
        self._halted.pop(run, None)

    # ------------------------------------------------------------ a site's side

    async def next_task(self, site: str, wait: float) -> dict[str, Any] | None:
        """What the site is to do, if need be after waiting for it so many seconds; None: nothing yet."""
        clock = asyncio.get_running_loop().time
        until = clock() + min(max(0.0, wait), self.poll)
        with self.presence.polls(site):
            await self._lives(site, "waiting")
            while True:
                rung = self._bell(site).heard()  # before looking: what is opened meanwhile rings it
                try:
                    if (task := await self._hand_out(site)) is not None:
                        return task
                    if self._draining or (left := until - clock()) <= 0:
                        return None
                    with suppress(TimeoutError):
                        await asyncio.wait_for(rung, left)
                finally:
                    rung.cancel()

    async def alive(self, site: str, task: str, phase: str, done: float | None = None) -> tuple[bool, str]:
        """A site says what it is doing; whether its answer is still waited for, and if not, why."""
        self.presence.heard(site, phase if done is None else f"{phase} ({done:.0%})")
        await self._lives(site, phase)
        try:
            call = self._book.call_of(site, task)
        except Refusal as refusal:
            return False, str(refusal)
        if call.state.who[site].seq >= 0 or call.state.ends:
            return False, call.state.ends or "its answer is here already"
        if call.state.policy.gone is None:
            await call.happen(Lives(site, phase))
        return True, ""

    async def document(self, site: str, digest: str) -> str:
        """A description or a message's manifest that a task of this site names. Raises Refusal NOT_FOUND."""
        self.presence.heard(site)
        for call in self._book.of_site(site):
            if digest in (call.tasks[site]["description"], call.call.message[site]):
                message = self._book.message(digest)
                return await self._papers.document(digest) if message is None else message.text
        raise Refusal("NOT_FOUND", f"no task of yours names a document {digest[:80]!r}")

    def may_read(self, site: str, digest: str) -> bool:
        """Whether a chunk belongs to a message that this site is asked with."""
        self.presence.heard(site)
        return self._book.may_read(site, digest)

    async def hello(self, site: str, declared: Mapping[str, Any]) -> None:
        """A site says what it has. Raises StoreError."""
        self.presence.heard(site, "waiting")
        await self._durably(lambda: self.ledger.declare(site, declared, self.wall()))

    def bye(self, site: str) -> None:
        """A site leaves in good order; it may come back, and what it was asked waits for it as the policy says."""
        self.presence.goes(site)

    async def revoked(self, site: str) -> None:
        """A site is shut out: it has failed wherever it is asked."""
        self.presence.goes(site)
        self._shut_out.add(site)
        for call in self._book.of_site(site):
            while not call.state.ends and call.state.who[site].seq < 0:
                try:
                    await call.happen(Fails(site, SHUT_OUT))
                except Fenced:
                    return
                except StoreError:  # else the call would wait for somebody who may not answer
                    await asyncio.sleep(AGAIN)
                except Refusal:  # held up: whoever takes it up again knows who is shut out
                    break
        self._bell(site).ring()

    def drain(self) -> None:
        """No task is handed out any more."""
        self._draining = True
        for bell in self._bells.values():
            bell.ring()

    # ------------------------------------------------------------ what others want to know

    def status(self, run: str) -> dict[str, Any]:
        """What is open in a run: for whom it waits, and what happens next. Empty where nothing is."""
        calls = [call for call in self._book.of_run(run) if not call.closed]
        return telling.told(calls[-1].call.key, calls[-1], self.presence) if calls else {}

    def contacts(self) -> dict[str, dict[str, Any]]:
        """By site: seconds since it was heard of, what it is doing, whether it is connected."""
        return self.presence.contacts(self.lease)

    # ------------------------------------------------------------ inside

    def _bell(self, site: str) -> Bell:
        return self._bells.setdefault(site, Bell())

    async def _opened(self, call: Call) -> Call:
        await self._durably(lambda: self.ledger.open_call(call))
        failpoints.hit("call.opened")
        return call

    async def _taken_up(self, run: Attached, call: Call, asks: Sequence[Ask], wanted: int) -> OpenCall:
        key = call.key
        messages = [
            self._book.message(digest) or await self._papers.message(digest)
            for digest in dict.fromkeys(call.message.values())
        ]
        tasks = {}
        for ask in asks:
            told = {"description": run.description, "message": ask.message, "asked": len(asks)}
            id = task_id(key, ask.client, run.description, ask.message)
            tasks[ask.client] = {**ask.task, "task": id, **told}

        async def write(entries: list[Entry]) -> None:
            await self._durably(lambda: self.ledger.append(key, entries))
            failpoints.hit("call.written")

        async def read() -> list[Entry]:
            calls = await self._durably(lambda: self.ledger.calls(key.run))
            return [entry for one in calls if one.key == key for entry in one.entries]

        policy = run.plan.policy
        if key.kind != "train":  # everybody is asked, and whoever answers in time is heard
            policy = replace(policy, over_select=0.0, quorum=0.0, missed="retry")
        brought = {e.client: await self._papers.manifest(e.data) for e in call.entries if e.kind == "accepted"}
        opened = OpenCall(call, machine.opened(call.asked, wanted, policy), tasks, write, read)
        self._book.add(opened, messages)
        for site, manifest in brought.items():
            self._book.brings(opened, site, [digest for digest, _ in manifest["chunks"]])
        self._holding.taken_up(key)
        return opened

    async def _hand_out(self, site: str) -> dict[str, Any] | None:
        for call in self._book.of_site(site):
            if self._draining:
                return None
            if call.held or call.call.key.run in self._halted or call.state.ends or call.state.who[site].seq >= 0:
                continue
            if any(isinstance(effect, HandsOut) for effect in await call.happen(Asks(site))):
                self.presence.heard(site, "working")
                deadline = call.state.policy.deadline
                left = None if deadline is None else max(0.0, deadline.total_seconds() - call.now())
                return {**call.tasks[site], "deadline": left, "lease": self.lease}
        return None

    async def _lives(self, site: str, doing: str) -> None:
        """Where silence counts as failure, whatever is heard of a site is heard for all that it is asked."""
        for call in self._book.of_site(site):
            if call.state.policy.gone is not None and call.state.who[site].seq < 0 and not call.state.ends:
                await call.happen(Lives(site, doing))

    async def _told(self, call: OpenCall, index: int) -> Told:
        client = call.state.asked[index]
        standing, task = call.state.who[client], call.tasks[client]["task"]
        if standing.phase == "failed":
            return Told(index, client, task, None, error=str(standing.data.get("error", "failed")))
        return Told(index, client, task, await self._papers.manifest(standing.data), str(standing.data["manifest"]))


def _named(key: CallKey) -> str:
    return f"{key.kind} round {key.round} of run {key.run!r} (call {key.number})"
