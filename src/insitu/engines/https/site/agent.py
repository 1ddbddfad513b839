"""A site at work: asks for a task, does it, sends what came of it, asks again. Only ever opens outbound requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from insitu.core import failpoints
from insitu.core.errors import Refusal
from insitu.core.types import Answer, Client, Task
from insitu.engines.https.http import Transport
from insitu.engines.https.introduced import Introduced
from insitu.engines.https.site.cache import Cache
from insitu.engines.https.site.disk import Disk
from insitu.engines.https.site.fetch import Fetcher
from insitu.engines.https.site.memory import SiteMemories
from insitu.engines.https.site.outbox import Outbox
from insitu.engines.https.site.patience import Patience
from insitu.engines.https.site.rules import Rules
from insitu.engines.https.site.send import MAX_ERROR, Sender
from insitu.engines.https.site.told import Asked, between, table
from insitu.engines.https.wire.manifest import Manifest, canonical, is_task
from insitu.rounds.client import work
from insitu.rounds.plan import Plan

T = TypeVar("T")
Compute = Callable[[Callable[[], Any]], Awaitable[Any]]
Build = Callable[[Mapping[str, Any]], Plan]
OVER = ("ROUND_CLOSED", "STALE_ROUND", "UNKNOWN_TASK")
"""The coordinator no longer waits for this task's answer."""
FINAL = ("REVOKED", "NO_CERTIFICATE", "UNKNOWN_CERTIFICATE", "FORBIDDEN", "VERSION")
"""The coordinator wants nothing of this site any more."""
STRANGE, STRANGE_PAUSE = 3, 20.0
"""How often a certificate is shown again that is not known, and after how many seconds: a coordinator that has just
started, or was restored, may not know everybody yet."""
POLL = 50.0
"""Seconds that the coordinator may hold a question for work."""
PLANS = 4
"""Plans that are kept: of the runs that go on at the same time."""
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Data:
    """What a site has: its client, loaded when it is asked for, and what it declares of it."""

    client: Callable[[], Client]
    declared: Mapping[str, Any]


@dataclass
class Doing:
    """What the agent does just now; for its own status, and for the coordinator's."""

    task: str = ""
    run: str = ""
    round: int = 0
    kind: str = ""
    phase: str = "waiting"
    closed: str = ""
    since: float = 0.0
    done: dict[str, int] = field(default_factory=lambda: {"answered": 0, "failed": 0, "late": 0})


class Agent:
    """One site.

    transport  to its coordinator
    data       its client
    build      a plan out of a description; raises what is wrong with it
    rules      what it lets itself be asked for
    disk       where it keeps chunks, memories and finished updates
    say        told a sentence for the log; ``note`` an entry for the audit log: what was asked, what left
    compute    runs a function where it does not block (a thread)
    cache      bytes of chunks that are kept to spare downloads
    """

    def __init__(
        self, transport: Transport, data: Data, build: Build, rules: Rules, disk: Disk, *, compute: Compute,
        random: Random, say: Callable[[str], None], note: Callable[[str, Mapping[str, Any]], None],
        versions: Mapping[str, str], cache: int = 4 * 2**30, poll: float = POLL,
    ) -> None:  # fmt: skip
        transport = Introduced(transport)
        self._transport, self._data, self._build, self._rules = transport, data, build, rules
        self._compute, self._say, self._note, self._versions, self._poll = compute, say, note, versions, poll
        self._random, self._patience = random, Patience(random, say)
        self._outbox, self._memories = Outbox(disk), SiteMemories(disk)
        self.fetcher = Fetcher(transport, Cache(disk, cache), self._patience, compute)
        self.sender = Sender(transport, self._outbox, self._patience)
        self._plans: dict[str, Plan] = {}
        self._lease = 60.0
        self._closed = asyncio.Event()
        self._last, self._again, self._odd = "", 0, 0
        self.name = ""
        self.doing = Doing()

    async def run(self) -> None:
        """Until it is cancelled. Raises Refusal where this site is no longer welcome (revoked, unknown, too old)."""
        greeted, strange = False, 0
        while True:
            try:
                if not greeted:
                    await self.hello()
                    greeted, strange = True, 0
                if (told := await self._next()) is not None:
                    await self._answer(told)
            except OSError as error:  # of this site's own disk: what cannot be written down is not done
                await self._patience.pause("this site's disk", 10, f"{type(error).__name__}: {error}")
            except Refusal as refusal:
                if refusal.code != "UNKNOWN_CERTIFICATE" or strange == STRANGE:
                    raise
                greeted, strange = False, strange + 1
                await self._patience.pause("hello", 10 * strange, f"{refusal.code}: {refusal}", STRANGE_PAUSE)

    async def hello(self) -> None:
        """Says what is here, and learns how the coordinator wants things."""
        body = canonical({"versions": dict(self._versions), "data": dict(self._data.declared)}).encode()
        self._note("declared", dict(self._data.declared))

        async def ask() -> dict[str, Any]:
            told = table(await self._transport.request("POST", "/v1/hello", headers=JSON, body=body))
            if not isinstance(told.get("name"), str):
                raise Refusal("BROKEN", "the coordinator does not say what this site is called")
            return told

        told = await self._patience.until("hello", ask)
        self.name = told["name"]
        self._lease = between(told.get("lease"), 0.03, 3600.0, self._lease)
        self._poll = between(told.get("poll"), 0.0, self._poll, self._poll)

    async def renew(self, request: str) -> dict[str, Any]:
        """A new certificate for a certificate request (PEM), and the authorities that there are now."""
        body = canonical({"csr": request}).encode()
        return table(await self._transport.request("POST", "/v1/renew", headers=JSON, body=body))

    async def bye(self) -> None:
        """Leaves in good order; no matter if nobody hears it."""
        with suppress(OSError, Refusal):
            await self._transport.request("POST", "/v1/bye", body=b"{}", timeout=5)

    # ------------------------------------------------------------ a task

    async def _next(self) -> dict[str, Any] | None:
        self._does("waiting")
        now = asyncio.get_running_loop().time
        began = now()

        async def ask() -> dict[str, Any] | None:
            query = {"wait": f"{self._poll:g}"}
            reply = await self._transport.request("GET", "/v1/next", query=query, timeout=self._poll + 30)
            return None if reply.status == 204 else table(reply)

        try:
            told = await self._patience.until("next task", ask)
        except Refusal as refusal:
            if refusal.code in FINAL:
                raise
            self._odd += 1
            await self._patience.pause("next task", self._odd, f"{refusal.code}: {refusal}")
            return None
        self._odd = 0
        if told is None and now() - began < min(1.0, self._poll / 2):
            # It did not wait for work: it is about to end, say. All sites would ask it again at once, for ever.
            await asyncio.sleep(self._random.uniform(0.1, 1.0) * min(2.0, self._poll + 0.1))
        return told

    async def _answer(self, told: dict[str, Any]) -> None:
        """One task from its first byte to its acknowledgement, or to the reason why there will be none."""
        id = str(told.get("task"))
        if not is_task(id):
            await self._patience.pause("next task", 10, "the coordinator gave a task without an id of ours")
            return
        self._again = self._again + 1 if id == self._last else 0
        if self._again:
            why = f"the coordinator gives task {id[:12]} again, which it has had an answer to"
            await self._patience.pause("next task", self._again, why)
        try:
            task = Asked.of(told)
            self._rules.check_task(told)
        except Refusal as refusal:
            await self._refuse(told, refusal)
            return
        self.doing = Doing(task.id, task.run, task.round, task.kind, done=self.doing.done)
        self._closed = asyncio.Event()
        self._outbox.keep_only(task.id)
        alive = asyncio.ensure_future(self._stay_alive(task.id))
        try:
            await self._do(task)
        except Refusal as refusal:
            await self._refuse(told, refusal)
        except Exception as error:
            await self._fail(told, "FAILED", f"{type(error).__name__}: {error}")
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)
            self.doing = Doing(done=self.doing.done)

    async def _do(self, task: Asked) -> None:
        of = {name: getattr(task, name) for name in ("run", "round", "kind")}
        asked = {name: getattr(task, name) for name in ("asked", "description", "message")}
        self._note("asked", {**of, "task": task.id, **asked})
        finished = self._outbox.get(task.id)
        if finished is None:
            self._does("downloading")
            plan, message = await self._unless_closed(self._fetched(task))
            finished = await self._train(task, plan, message)
        self._still_open()
        self._does("uploading")
        left = {name: finished[name] for name in ("length", "digest", "weight")}
        left["metrics"] = sorted(finished["metrics"])
        self._note("sending", {**of, "task": task.id, **left})
        before = self.sender.bytes
        await self.sender.update(task.id, finished)
        self._note("sent", {"task": task.id, "bytes": self.sender.bytes - before, **left})
        self.doing.done["answered"] += 1
        self._over(task.id)

    async def _fetched(self, task: Asked) -> tuple[Plan, Any]:
        """The plan, and the message: nothing large is fetched before all of it is known to be allowed."""
        manifest: Manifest = await self.fetcher.manifest(task.message, 2**62)
        self._rules.check_message(manifest)
        plan = await self._plan(task.description)
        message = await self.fetcher.tree(manifest)
        failpoints.hit("site.fetched")
        return plan, message

    async def _unless_closed(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What it gives, unless the round is closed first: that is Refusal ROUND_CLOSED."""
        work = asyncio.ensure_future(coroutine)
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({work, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._still_open()
            return work.result()
        finally:
            work.cancel()
            closed.cancel()
            await asyncio.gather(work, closed, return_exceptions=True)

    def _still_open(self) -> None:
        if self._closed.is_set():
            raise Refusal("ROUND_CLOSED", self.doing.closed)

    async def _plan(self, digest: str) -> Plan:
        plan = self._plans.pop(digest, None)
        if plan is None:
            description = await self.fetcher.document(digest)
            if not isinstance(description, dict):
                raise Refusal("SITE_REFUSED", "the description is no object")
            self._rules.check_description(description)
            plan = await self._compute(lambda: self._build(description))
        self._plans[digest] = plan
        while len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    async def _train(self, asked: Asked, plan: Plan, message: Any) -> dict[str, Any]:
        """The work itself, and what came of it in the outbox."""
        task = Task(
            asked.run, asked.round, asked.version, asked.kind, self.name, message, asked.seed,  # type: ignore[arg-type]
            asked.index, asked.place, asked.block, asked.discount,
        )  # fmt: skip
        trains = task.kind == "train"
        self._does("training")

        def train() -> Answer:
            memory = self._memories.open(asked.run, asked.memory, asked.id, forget=trains)
            return work(plan, task, self._data.client(), memory)

        answer = await self._compute(train)
        failpoints.hit("site.trained")
        self._still_open()
        keeps = trains and answer.memory is not None
        more = {
            "task": asked.id, "base": asked.message, "keeps": keeps,
            "weight": {k: float(w) for k, w in answer.update.weight.items()},
            "metrics": self._rules.told({k: float(v) for k, v in answer.update.metrics.items()}),
        }  # fmt: skip

        def put() -> dict[str, Any]:
            if keeps:
                self._memories.keep(asked.run, asked.id, answer.memory)
            return self._outbox.put(asked.id, answer.update.value, more)

        return await self._compute(put)  # type: ignore[no-any-return]

    # ------------------------------------------------------------ what may go wrong

    async def _refuse(self, told: Mapping[str, Any], refusal: Refusal) -> None:
        """Somebody says no: the coordinator, for whom it is over, or this site."""
        if refusal.code in OVER:
            self._say(f"task {told['task'][:12]} of round {told.get('round')!r:.20} is over: {refusal}")
            self.doing.done["late"] += 1
            self._over(told["task"])
            return
        if refusal.code in FINAL:
            raise refusal
        await self._fail(told, refusal.code, str(refusal))

    async def _fail(self, told: Mapping[str, Any], code: str, error: str) -> None:
        error = error[:MAX_ERROR]
        self._say(f"round {told.get('round')!r:.20} of run {told.get('run')!r:.80}: {code}: {error}")
        of = {name: _short(told.get(name)) for name in ("run", "round", "kind", "task")}
        self._note("refused" if code == "SITE_REFUSED" else "failed", {**of, "code": code, "error": error})
        self.doing.done["failed"] += 1
        try:
            await self.sender.failure(told["task"], code, error)
        except Refusal as refusal:
            if refusal.code in FINAL:
                raise
            self._say(f"the coordinator does not take that task {told['task'][:12]} has failed: {refusal}")
        self._over(told["task"])

    def _over(self, task: str) -> None:
        """It was answered, or will never be."""
        self._last = task
        self._outbox.remove(task)

    async def _stay_alive(self, task: str) -> None:
        """Tells the coordinator now and then what it is doing, and hears whether it still matters."""
        path, quiet = f"/v1/tasks/{task}/alive", self._lease / 3
        while True:
            await asyncio.sleep(quiet)
            body = canonical({"phase": self.doing.phase, "done": None}).encode()
            try:
                told = table(await self._transport.request("POST", path, headers=JSON, body=body, timeout=quiet))
                reason = told.get("reason", "the round is closed") if told.get("open") is False else None
            except OSError:
                continue
            except Refusal as refusal:
                reason = str(refusal) if refusal.code in OVER else None
            if reason is not None and not self._closed.is_set():
                self.doing.closed = str(reason)[:MAX_ERROR] or "the round is closed"
                self._closed.set()

    def _does(self, phase: str) -> None:
        self.doing.phase = phase
        self.doing.since = asyncio.get_running_loop().time()


def _short(x: Any) -> Any:
    """A stranger's value, as much of it as an entry of the audit log takes."""
    return x if x is None or type(x) in (int, float, bool) else str(x)[:200]
