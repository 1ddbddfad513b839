"""Where runs and sites meet: tasks go out, updates come in, durable first. Larger because one object holds all of it.

Lives on one asyncio loop and uses nothing else of the world: time is the loop's, the disk is behind ``durably`` and
``aside``. ``status`` and ``contacts`` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from insitu.core import failpoints
from insitu.core.errors import Halted, Refusal, StoreError
from insitu.core.federation import Blobs, Call, CallKey, Entry, Ledger
from insitu.core.types import Context
from insitu.engines.https.calls import checking, machine
from insitu.engines.https.calls.machine import Arrives, Asks, Closes, Fails, HandsOut, Knows, Lives, Refuses
from insitu.engines.https.calls.open_call import Bell, OpenCall
from insitu.engines.https.calls.presence import Presence
from insitu.engines.https.calls.shelf import Shelf
from insitu.engines.https.calls.values import Message, task_id
from insitu.engines.https.wire.manifest import Manifest, checked
from insitu.rounds.plan import Plan

Durably = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function, which may block, off the loop."""
Declared = Callable[[str], Mapping[str, Any]]
"""What a site says of its data."""
SMALL = 16 * 2**10
"""Bytes of a manifest that is written into the journal itself; larger ones are documents."""
SHUT_OUT = "REVOKED: the site's certificate was revoked"
REMEMBERED = 10_000
"""Tasks of rounds that are over, so that whoever comes so late is told that."""


@dataclass(frozen=True)
class Ask:
    """What one client is asked in a call: the digest of its message's manifest, and the other fields of its task."""

    client: str
    message: str
    task: Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """What one client told: the manifest of its update, or an error."""

    index: int
    client: str
    task: str
    manifest: Mapping[str, Any] | None
    digest: str = ""
    error: str = ""


@dataclass
class _Run:
    plan: Plan
    description: str
    declared: Declared
    known: dict[CallKey, Call]
    halted: str = ""
    bell: Bell = field(default_factory=Bell)
    open: list[CallKey] = field(default_factory=list)


class Exchange:
    """All calls of all runs of a coordinator.

    lease    seconds without a word after which a site that is at work counts as away
    poll     seconds for which a question for work is held at most
    largest  bytes that an update may have
    say      told what happens: a level, a sentence, fields
    """

    def __init__(
        self, ledger: Ledger, blobs: Blobs, *, durably: Durably, aside: Durably, wall: Callable[[], float] = time.time,
        lease: float = 60.0, poll: float = 25.0, largest: int = 2 * 2**30,
        say: Callable[..., None] = lambda level, text, **fields: None,
    ) -> None:  # fmt: skip
        self.ledger, self.blobs, self.wall = ledger, blobs, wall
        self.lease, self.poll, self.largest = lease, poll, largest
        self.presence, self.shelf = Presence(), Shelf(blobs)
        self.counts: Counter[str] = Counter()
        """accepted, duplicates, failed, bytes_in, bytes_out, and refused:CODE."""
        self._durably, self._aside, self._say = durably, aside, say
        self._checking = asyncio.Lock()
        self._runs: dict[str, _Run] = {}
        self._calls: dict[CallKey, OpenCall] = {}
        self._tasks: dict[str, tuple[CallKey, str]] = {}
        self._bells: dict[str, Bell] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        self._messages: dict[str, Message] = {}
        self._brought: dict[tuple[CallKey, str], set[str]] = {}
        self._shut_out: set[str] = set()
        self._draining = False

    # ------------------------------------------------------------ a run's side

    async def attach(self, run: str, plan: Plan, description: str, declared: Declared) -> None:
        """A run begins or goes on. Raises StoreError."""
        calls, members = await self._durably(lambda: (self.ledger.calls(run), self.ledger.members()))
        self._shut_out |= {member.name for member in members if member.revoked is not None}
        self._runs[run] = _Run(plan, description, declared, {call.key: call for call in calls})

    def detach(self, run: str) -> None:
        """A run ends or halts: its calls stay in the ledger as they are."""
        for key in [key for key in self._calls if key.run == run]:
            self._forget(key)
        self._runs.pop(run, None)

    async def open(self, key: CallKey, asks: Sequence[Ask], wanted: int) -> bool:
        """Opens a call; True where it had been opened before, and goes on or is as it ended. Raises StoreError."""
        run = self._runs[key.run]
        asked, message = [ask.client for ask in asks], {ask.client: ask.message for ask in asks}
        call = run.known.pop(key, None)
        before = call is not None
        if call is None:
            call = Call(key, asked, message, self.wall())
            made = call
            await self._durably(lambda: self.ledger.open_call(made))
            failpoints.hit("call.opened")
        elif list(call.asked) != asked or dict(call.message) != message:
            raise StoreError(
                f"{_named(key)} asked other clients, or other things, before the restart: the code or the roster has"
                " changed since; stop this run and start it anew"
            )
        for digest in set(message.values()):
            self.shelf.use((await self._message(digest)).chunks)
        tasks = {ask.client: self._task(run, key, ask, len(asks)) for ask in asks}

        async def write(entries: list[Entry]) -> None:
            await self._durably(lambda: self.ledger.append(key, entries))
            failpoints.hit("call.written")

        async def read() -> list[Entry]:
            calls = await self._durably(lambda: self.ledger.calls(key.run))
            return [entry for one in calls if one.key == key for entry in one.entries]

        policy = run.plan.policy
        if key.kind != "train":  # everybody is asked, and whoever answers in time is heard
            policy = replace(policy, over_select=0.0, quorum=0.0, missed="retry")
        opened = OpenCall(call, machine.opened(asked, wanted, policy), tasks, write, read)
        for entry in call.entries:
            if entry.kind == "accepted":
                self._brings(key, entry.client, (await self._text(entry.data))["chunks"])
        self._calls[key] = opened
        run.open.append(key)
        for client, task in tasks.items():
            self._tasks[task["task"]] = (key, client)
            if client in self._shut_out and opened.state.who[client].seq < 0 and not opened.state.ends:
                await opened.happen(Fails(client, SHUT_OUT))
            self._bell(client).ring()
        return before

    async def take(self, key: CallKey) -> Told | None:
        """The next client of whom all is known, in the cohort's order; None: nothing more will come. Raises Halted."""
        run, call = self._runs[key.run], self._calls[key]
        while True:
            if run.halted:
                raise Halted(run.halted)
            if call.broken is not None:
                raise call.broken
            ready = machine.ready(call.state)
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
        call = self._calls.get(key)
        if call is None:
            return
        if not any(entry.kind == "closed" for entry in call.call.entries):
            await call.happen(Closes(reason))
        failpoints.hit("call.closed")
        call.end()

    async def forget(self, run: str, before: int) -> None:
        """Calls of rounds before ``before`` are dropped, with the updates of which they told; later ones stay."""
        old = [key for key in self._calls if key.run == run and key.round < before]
        for key in old:
            self._forget(key)
        await self._durably(lambda: self.ledger.forget(run, before))

    def halt(self, run: str, why: str) -> None:
        """The run's ``take`` raises Halted, now or when it is called; nothing is handed out for it meanwhile."""
        if run in self._runs:
            self._runs[run].halted = why
            self._runs[run].bell.ring()

    def release(self, run: str) -> None:
        """Undoes ``halt``."""
        if run in self._runs:
            self._runs[run].halted = ""

    # ------------------------------------------------------------ a site's side

    async def next_task(self, site: str, wait: float) -> dict[str, Any] | None:
        """What the site is to do, if need be after waiting for it so many seconds; None: nothing yet."""
        loop = asyncio.get_running_loop()
        until = loop.time() + min(max(0.0, wait), self.poll)
        self.presence.polls(site, loop.time())
        await self._lives(site, "waiting")
        try:
            while True:
                if (task := await self._hand_out(site)) is not None:
                    return task
                left = until - loop.time()
                if left <= 0 or self._draining:
                    return None
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._bell(site).heard(), left)
        finally:
            self.presence.left(site, loop.time())

    async def alive(self, site: str, task: str, phase: str, done: float | None = None) -> tuple[bool, str]:
        """A site says what it is doing; whether its answer is still waited for, and if not, why."""
        self.presence.heard(site, asyncio.get_running_loop().time(), phase)
        try:
            call = self._call_of(site, task)
        except Refusal as refusal:
            return False, str(refusal)
        for effect in await call.happen(Lives(site, phase)):
            if isinstance(effect, Refuses):
                return False, effect.text
        await self._lives(site, phase, call)
        return True, ""

    async def document(self, site: str, digest: str) -> str:
        """A description or a message's manifest that a task of this site names. Raises Refusal NOT_FOUND."""
        for key, call in self._calls.items():
            if site in call.tasks and digest in (self._runs[key.run].description, call.call.message[site]):
                found: str | None = await self._durably(lambda: self.ledger.document(digest))
                if found is not None:
                    return found
        raise Refusal("NOT_FOUND", f"no task of yours names a document {digest}")

    def may_read(self, site: str, digest: str) -> bool:
        """Whether a chunk belongs to a message that this site is asked with."""
        return any(
            site in call.tasks and digest in self._messages[call.call.message[site]].chunks
            for call in self._calls.values()
        )

    def takes(self, site: str, task: str) -> None:
        """Raises Refusal where nothing is taken for this task any more."""
        call = self._call_of(site, task)
        if call.state.who[site].seq >= 0 or call.state.ends:
            self._settled(call, site, Arrives(site, {}))

    @contextmanager
    def arriving(self, site: str, task: str, digest: str) -> Iterator[Callable[[], None]]:
        """Around the upload of a chunk; call what it gives once the chunk is whole. Raises Refusal."""
        self.takes(site, task)
        if not self.shelf.begin(digest):
            raise Refusal("BUSY", f"chunk {digest} is just being removed", 1.0)
        key, _ = self._tasks[task]
        try:
            yield lambda: self._brings(key, site, [(digest, 0)])
        finally:
            self.shelf.end(digest)

    async def missing(self, site: str, task: str, chunks: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Which of these chunks the site has to send, and from which byte on.

        One that only others have sent counts as missing: else it would tell what they hold.
        """
        if self._settled_already(site, task):
            return []

        def look() -> list[tuple[str, int]]:
            return [(digest, self.blobs.arrived(site, digest)) for digest, _ in chunks if not self.has(site, digest)]

        return await self._durably(look)  # type: ignore[no-any-return]

    def has(self, site: str, digest: str) -> bool:
        """Whether a chunk is there that this site has sent itself, or was given."""
        own = any(digest in here for (_, who), here in self._brought.items() if who == site)
        return (own or self.may_read(site, digest)) and self.blobs.length(digest) is not None

    async def accept(self, site: str, task: str, value: Any) -> bool:
        """An update counts, durably; True where it did already. Raises Refusal where it must not, StoreError."""
        call = self._call_of(site, task)
        manifest = checked(value, self.largest, "update")
        key, _ = self._tasks[task]
        run = self._runs[key.run]
        data: dict[str, Any] = {"manifest": manifest.id, "bytes": manifest.length}
        if len(manifest.text) <= SMALL:
            data["text"] = manifest.text
        if (known := self._settled(call, site, Arrives(site, data))) is not None:
            return known
        if manifest.task != task or manifest.base != call.call.message[site]:
            raise Refusal("BAD_UPDATE", "the update answers another task, or another model than the task's")
        self._brings(key, site, manifest.chunks, only=[d for d, _ in manifest.chunks if self.has(site, d)])
        lost = [digest for digest, _ in manifest.chunks if not self.has(site, digest)]
        if lost:
            raise Refusal("MISSING_CHUNKS", f"{len(lost)} of {len(manifest.chunks)} chunks are missing: {lost[0]}")
        try:
            await self._check(run, key, call, site, manifest)
        except Refusal as refusal:
            self.counts[f"refused:{refusal.code}"] += 1
            self._say("warning", "an update is refused", run=key.run, round=key.round, site=site, reason=str(refusal))
            await call.happen(Fails(site, f"{refusal.code}: {refusal}"))
            raise
        await self._durably(lambda: self._keep(manifest, key.run, "text" not in data))
        failpoints.hit("update.before_entry")
        effects = await call.happen(Arrives(site, data))
        failpoints.hit("update.before_ack")
        for effect in effects:
            if isinstance(effect, Refuses):
                raise Refusal(effect.code, effect.text)
            if isinstance(effect, Knows):
                self.counts["duplicates"] += 1
                return True
        self.counts["accepted"] += 1
        return False

    async def fail(self, site: str, task: str, code: str, error: str) -> bool:
        """A site says that there will be no update; True where that was known. Raises Refusal, StoreError."""
        call = self._call_of(site, task)
        for effect in await call.happen(Fails(site, f"{code}: {error}")):
            if isinstance(effect, Refuses):
                raise Refusal(effect.code, effect.text)
            if isinstance(effect, Knows):
                return True
        self.counts["failed"] += 1
        return False

    async def hello(self, site: str, declared: Mapping[str, Any]) -> None:
        """A site says what it has. Raises StoreError."""
        self.presence.heard(site, asyncio.get_running_loop().time(), "waiting")
        await self._durably(lambda: self.ledger.declare(site, declared, self.wall()))

    def bye(self, site: str) -> None:
        """A site leaves in good order; it may come back."""
        self.presence.goes(site)

    async def revoked(self, site: str) -> None:
        """A site is shut out: it has failed wherever it is asked."""
        self.presence.goes(site)
        self._shut_out.add(site)
        for call in list(self._calls.values()):
            if site in call.tasks and not call.state.ends:
                await call.happen(Fails(site, SHUT_OUT))
        self._bell(site).ring()

    def drain(self) -> None:
        """No task is handed out any more."""
        self._draining = True
        for bell in self._bells.values():
            bell.ring()

    # ------------------------------------------------------------ what others want to know

    def status(self, run: str) -> dict[str, Any]:
        """What is open in a run: for whom it waits, and what happens next. Empty where nothing is."""
        from insitu.engines.https.calls.telling import told

        found = self._runs.get(run)
        open_keys = [] if found is None else [key for key in found.open if key in self._calls]
        if found is None or not open_keys:
            return {}
        return told(open_keys[-1], self._calls[open_keys[-1]], self.presence)

    def contacts(self) -> dict[str, dict[str, Any]]:
        """By site: seconds since it was heard of, what it is doing, whether it is connected."""
        return self.presence.contacts(self.lease)

    # ------------------------------------------------------------ inside

    def _bell(self, site: str) -> Bell:
        return self._bells.setdefault(site, Bell())

    def _task(self, run: _Run, key: CallKey, ask: Ask, asked: int) -> dict[str, Any]:
        id = task_id(key, ask.client, run.description, ask.message)
        return {**ask.task, "task": id, "description": run.description, "message": ask.message, "asked": asked}

    async def _hand_out(self, site: str) -> dict[str, Any] | None:
        if self._draining:
            return None
        for key, call in list(self._calls.items()):
            run = self._runs.get(key.run)
            if run is None or run.halted or site not in call.tasks or call.state.ends:
                continue
            if call.state.who[site].seq >= 0:
                continue
            if any(isinstance(effect, HandsOut) for effect in await call.happen(Asks(site))):
                self.presence.heard(site, asyncio.get_running_loop().time(), "working")
                deadline = run.plan.policy.deadline
                left = None if deadline is None else max(0.0, deadline.total_seconds() - call.now())
                return {**call.tasks[site], "deadline": left, "lease": self.lease}
        return None

    def _call_of(self, site: str, task: str) -> OpenCall:
        key, client = self._tasks.get(task, (None, ""))
        if key is not None and client == site and key in self._calls:
            return self._calls[key]
        if task in self._over:
            raise Refusal("STALE_ROUND", f"the round of task {task} is over: ask for the next task")
        raise Refusal("UNKNOWN_TASK", f"there is no task {task[:40]} of yours: ask for the next task")

    def _settled(self, call: OpenCall, site: str, event: Arrives) -> bool | None:
        """Whether an update counts already; None where it does not. Raises Refusal where it comes too late."""
        standing = call.state.who[site]
        if standing.seq < 0 and not call.state.ends:
            return None
        _, effects = machine.step(call.state, event, call.now())
        for effect in effects:
            if isinstance(effect, Refuses):
                raise Refusal(effect.code, effect.text)
        self.counts["duplicates"] += 1
        return True

    def _settled_already(self, site: str, task: str) -> bool:
        call = self._call_of(site, task)
        if call.state.who[site].phase == "arrived":
            return True
        self.takes(site, task)
        return False

    async def _lives(self, site: str, doing: str, but: OpenCall | None = None) -> None:
        """Where silence counts as failure, whatever is heard of a site is heard for all that it is asked."""
        for call in list(self._calls.values()):
            standing = call.state.who.get(site)
            waits = standing is not None and standing.seq < 0 and not call.state.ends
            if waits and call is not but and call.state.policy.gone is not None:
                await call.happen(Lives(site, doing))

    def _brings(
        self, key: CallKey, site: str, chunks: Sequence[Sequence[Any]], only: Sequence[str] | None = None
    ) -> None:
        """Chunks that this client's answer to this call needs, each counted once."""
        here = self._brought.setdefault((key, site), set())
        new = {str(chunk[0]) for chunk in chunks} - here
        new &= set(only) if only is not None else new
        self.shelf.use(new)
        here |= new

    async def _message(self, digest: str) -> Message:
        if digest not in self._messages:
            text = await self._durably(lambda: self.ledger.document(digest))
            if text is None:
                raise StoreError(f"the ledger has lost the document {digest}: restore a copy of it")
            self._messages[digest] = Message.of(json.loads(text))
        return self._messages[digest]

    async def _text(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest that an entry names."""
        digest = str(data["manifest"])
        text = data.get("text") or await self._durably(lambda: self.ledger.document(digest))
        if text is None:
            raise StoreError(f"the ledger has lost the document {digest}: restore a copy of it")
        return dict(json.loads(text))

    async def _check(self, run: _Run, key: CallKey, call: OpenCall, site: str, manifest: Manifest) -> None:
        message, asked = self._messages[call.call.message[site]], len(call.call.asked)
        context = Context(key.round, 0, seed=int(call.tasks[site].get("seed", 0)), client=site)
        examples = run.declared(site).get("examples")
        if key.kind == "train":
            checking.check_weight(manifest, examples)

        def look() -> None:
            checking.check_update(run.plan, key.kind, manifest, message, self._read, asked, context)

        async with self._checking:  # one at a time: a packed one is unpacked as a whole
            await self._aside(look)

    def _read(self, digest: str) -> bytes:
        return self.blobs.read(digest, 0, self.blobs.length(digest))  # its digest was checked when it came

    def _keep(self, manifest: Manifest, run: str, document: bool) -> None:
        self.blobs.sync()
        if document:
            self.ledger.keep(manifest.id, manifest.text, run)

    async def _told(self, call: OpenCall, index: int) -> Told:
        client = call.state.asked[index]
        standing, task = call.state.who[client], call.tasks[client]["task"]
        if standing.phase == "failed":
            return Told(index, client, task, None, error=str(standing.data.get("error", "failed")))
        return Told(index, client, task, await self._text(standing.data), str(standing.data["manifest"]))

    def _forget(self, key: CallKey) -> None:
        call = self._calls.pop(key)
        call.end()
        for task in call.tasks.values():
            self._tasks.pop(task["task"], None)
            self._over[task["task"]] = None
        while len(self._over) > REMEMBERED:
            self._over.popitem(last=False)
        run = self._runs.get(key.run)
        if run is not None and key in run.open:
            run.open.remove(key)
        for site in call.tasks:
            self.shelf.drop(self._brought.pop((key, site), ()))
        used = {digest for other in self._calls.values() for digest in other.call.message.values()}
        for digest in set(call.call.message.values()):
            self.shelf.drop(self._messages[digest].chunks)
            if digest not in used:
                del self._messages[digest]


def _named(key: CallKey) -> str:
    return f"{key.kind} round {key.round} of run {key.run!r} (call {key.number})"
