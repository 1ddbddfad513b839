"""A site at work: asks for a task, does it, sends what came of it, asks again. Only ever opens outbound requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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
from insitu.engines.https.site.send import Sender
from insitu.engines.https.wire.manifest import Manifest, canonical, is_task
from insitu.rounds.client import work
from insitu.rounds.plan import Plan

T = TypeVar("T")
Compute = Callable[[Callable[[], Any]], Awaitable[Any]]
Build = Callable[[Mapping[str, Any]], Plan]
OVER = ("ROUND_CLOSED", "STALE_ROUND", "UNKNOWN_TASK")
"""The coordinator no longer waits for this task's answer."""
POLL = 25.0
"""Seconds that the coordinator may hold a question for work."""


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
        self._patience = Patience(random, say)
        self._outbox, self._memories = Outbox(disk), SiteMemories(disk)
        self.fetcher = Fetcher(transport, Cache(disk, cache), self._patience)
        self.sender = Sender(transport, self._outbox, self._patience)
        self._descriptions: dict[str, Mapping[str, Any]] = {}
        self._plans: dict[str, Plan] = {}
        self._lease = 60.0
        self.name = ""
        self.doing = Doing()

    async def run(self) -> None:
        """Until it is cancelled. Raises Refusal where this site is no longer welcome (revoked, unknown, too old)."""
        await self.hello()
        while True:
            if (task := await self._next()) is not None:
                await self._answer(task)

    async def hello(self) -> None:
        """Says what is here, and learns how the coordinator wants things."""
        body = canonical({"versions": dict(self._versions), "data": dict(self._data.declared)}).encode()

        async def ask() -> Any:
            headers = {"content-type": "application/json"}
            return (await self._transport.request("POST", "/v1/hello", headers=headers, body=body)).checked().value()

        told = await self._patience.until("hello", ask)
        self.name = str(told["name"])
        self._lease = float(told.get("lease", self._lease))
        self._poll = min(self._poll, float(told.get("poll", self._poll)))

    async def renew(self, request: str) -> dict[str, Any]:
        """A new certificate for a certificate request (PEM), and the authorities that there are now."""
        body = canonical({"csr": request}).encode()
        headers = {"content-type": "application/json"}
        reply = await self._transport.request("POST", "/v1/renew", headers=headers, body=body)
        return dict(reply.checked().value())

    async def bye(self) -> None:
        """Leaves in good order; no matter if nobody hears it."""
        with suppress(OSError, Refusal):
            await self._transport.request("POST", "/v1/bye", body=b"{}", timeout=5)

    # ------------------------------------------------------------ a task

    async def _next(self) -> dict[str, Any] | None:
        self._does("waiting")

        async def ask() -> Any:
            query = {"wait": f"{self._poll:g}"}
            reply = await self._transport.request("GET", "/v1/next", query=query, timeout=self._poll + 30)
            return None if reply.status == 204 else reply.checked().value()

        try:
            told = await self._patience.until("next task", ask)
        except Refusal as refusal:
            if refusal.code not in OVER:
                raise
            return None
        return told if isinstance(told, dict) else None

    async def _answer(self, told: dict[str, Any]) -> None:
        """One task from its first byte to its acknowledgement, or to the reason why there will be none."""
        if not is_task(told.get("task")):
            await self._patience.pause("next task", 10, "the coordinator gave a task without an id of ours")
            return
        try:
            self._rules.check_task(told)
        except Refusal as refusal:
            await self._refuse(told, refusal)
            return
        self.doing = Doing(
            told["task"], str(told.get("run", "")), int(told.get("round", 0)), told["kind"], done=self.doing.done
        )
        self._outbox.keep_only(told["task"])
        alive = asyncio.ensure_future(self._stay_alive(told["task"]))
        try:
            await self._do(told)
        except Refusal as refusal:
            await self._refuse(told, refusal)
        except Exception as error:
            await self._fail(told, "FAILED", f"{type(error).__name__}: {error}")
        finally:
            alive.cancel()
            with suppress(asyncio.CancelledError):
                await alive
            self.doing = Doing(done=self.doing.done)

    async def _do(self, told: dict[str, Any]) -> None:
        task = told["task"]
        self._note("asked", {name: told.get(name) for name in ("run", "round", "kind", "task", "asked", "description")})
        finished = self._outbox.get(task)
        if finished is None:
            self._does("downloading")
            plan, message = await self._plan(told), await self._message(told)
            finished = await self._train(told, plan, message)
        if self.doing.closed:
            raise Refusal("ROUND_CLOSED", self.doing.closed)
        self._does("uploading")
        before = self.sender.bytes
        await self.sender.update(task, finished)
        left = {"task": task, "bytes": self.sender.bytes - before, "length": finished["length"]}
        left |= {"digest": finished["digest"], "metrics": sorted(finished["metrics"])}
        self._note("sent", left)
        self.doing.done["answered"] += 1
        self._outbox.remove(task)

    async def _plan(self, told: Mapping[str, Any]) -> Plan:
        digest = told["description"]
        if digest not in self._plans:
            description = await self.fetcher.document(digest)
            if not isinstance(description, dict):
                raise Refusal("SITE_REFUSED", "the description is no object")
            self._rules.check_description(description)
            self._plans = {digest: await self._compute(lambda: self._build(description))}  # the latest run's only
        return self._plans[digest]

    async def _message(self, told: Mapping[str, Any]) -> Any:
        manifest: Manifest = await self.fetcher.manifest(told["message"], 2**62)
        self._rules.check_message(manifest)
        message = await self.fetcher.tree(manifest)
        failpoints.hit("site.fetched")
        return message

    async def _train(self, told: Mapping[str, Any], plan: Plan, message: Any) -> dict[str, Any]:
        """The work itself, and what came of it in the outbox."""
        run, id = str(told["run"]), told["task"]
        named = (told.get("memory") or {}).get("task")
        task = Task(
            run, int(told["round"]), int(told["version"]), told["kind"], self.name, message, int(told["seed"]),
            int(told["index"]), int(told["place"]), int(told["block"]), float(told.get("discount", 1.0)),
        )  # fmt: skip
        self._does("training")

        def train() -> Answer:
            memory = self._memories.open(run, named, id)
            return work(plan, task, self._data.client(), memory)

        answer = await self._compute(train)
        failpoints.hit("site.trained")
        keeps = task.kind == "train" and answer.memory is not None
        more = {
            "task": id, "base": told["message"], "weight": {k: float(w) for k, w in answer.update.weight.items()},
            "metrics": self._rules.told({k: float(v) for k, v in answer.update.metrics.items()}), "keeps": keeps,
        }  # fmt: skip

        def put() -> dict[str, Any]:
            if keeps:
                self._memories.keep(run, id, answer.memory)
            return self._outbox.put(id, answer.update.value, more)

        return await self._compute(put)  # type: ignore[no-any-return]

    # ------------------------------------------------------------ what may go wrong

    async def _refuse(self, told: Mapping[str, Any], refusal: Refusal) -> None:
        """Somebody says no: the coordinator, for whom it is over, or this site."""
        if refusal.code in OVER:
            self._say(f"task {told['task'][:12]} of round {told.get('round')!r:.20} is over: {refusal}")
            self.doing.done["late"] += 1
            self._outbox.remove(told["task"])
            return
        if refusal.code in ("REVOKED", "NO_CERTIFICATE", "UNKNOWN_CERTIFICATE", "FORBIDDEN", "VERSION"):
            raise refusal
        await self._fail(told, refusal.code, str(refusal))

    async def _fail(self, told: Mapping[str, Any], code: str, error: str) -> None:
        self._say(f"round {told.get('round')!r:.20} of run {told.get('run')!r:.80}: {code}: {error}")
        self._note(
            "refused" if code == "SITE_REFUSED" else "failed", {"task": told.get("task"), "code": code, "error": error}
        )
        self.doing.done["failed"] += 1
        try:
            await self.sender.failure(told["task"], code, error)
        except Refusal as refusal:
            if refusal.code not in OVER:
                raise
        self._outbox.remove(told["task"])

    async def _stay_alive(self, task: str) -> None:
        """Tells the coordinator now and then what it is doing, and hears whether it still matters."""
        while True:
            await asyncio.sleep(self._lease / 3)
            body = canonical({"phase": self.doing.phase, "done": None}).encode()
            with suppress(OSError, Refusal):
                headers = {"content-type": "application/json"}
                path = f"/v1/tasks/{task}/alive"
                reply = await self._transport.request("POST", path, headers=headers, body=body, timeout=self._lease / 3)
                told = reply.checked().value()
                if told.get("open") is False and not self.doing.closed:
                    self.doing.closed = str(told.get("reason", "the round is closed"))[:500]

    def _does(self, phase: str) -> None:
        self.doing.phase = phase
        self.doing.since = asyncio.get_running_loop().time()
