"""A federation as a ``Session``: tasks become calls of an exchange, and what sites told is read when its turn comes.

Runs in the run's own thread. Whether a call is new, goes on after a restart, or was over long ago makes no difference
here: the same run asks the same questions, and the exchange knows what was said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insitu.core import aside, failpoints, spans
from insitu.core.errors import Refusal, ResumeError, StoreError
from insitu.core.federation import Call, CallKey
from insitu.core.protocols import Setting, Stepwise
from insitu.core.types import Answer, Failure, Task, Update
from insitu.engines.https.calls.accounts import Ask, Told
from insitu.engines.https.calls.values import Message
from insitu.engines.https.roster import Sites
from insitu.engines.https.wire.packing import filling, gathered, left_there, pack, unpack
from insitu.rounds.policy import Policy

if TYPE_CHECKING:
    from insitu.engines.https.exchange import Exchange

VOID, COUNTS = "void", "counts"
"""What the first word of a closed call's reason says: whether the server has made a round of it."""


@dataclass(frozen=True)
class Counted:
    """An update that was passed on: of which call of a round it was, and its manifest's digest."""

    number: int
    client: str
    manifest: str


class HttpsSession:
    """The engine at work on one run. ``call`` runs the exchange's coroutines to their ends."""

    def __init__(
        self, setting: Setting, exchange: Exchange, run: str, description: str,
        call: Callable[[Coroutine[Any, Any, Any]], Any], folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.setting, self.choices = setting, {"sites": len(setting.clients)}
        self._exchange, self._run, self._call, self._folder = exchange, run, call, folder
        self._kept: dict[CallKey, Call] = {kept.key: kept for kept in exchange.ledger.calls(run)}
        self._numbers = first_numbers(list(self._kept.values()), setting.plan.policy)
        self._wanted: int | None = None
        self._round = 0
        self._counted: dict[int, list[Counted]] = {}
        self._lying: Any = {}
        """The state that the round began with, where it lies in a file."""
        self._replayed: set[int] = set()
        """Rounds in which a call to train was in the ledger before this process asked for it."""
        plan = setting.plan
        self._adds_stored = (
            plan.reduce.adds_stored()
            and exchange.blobs.near
            and not any(stage.decodes == "each" for stage in plan.stages)  # which takes an update as a whole
        )
        declared = setting.clients.declared if isinstance(setting.clients, Sites) else lambda name: {}
        call(exchange.attach(run, setting.plan, description, declared))

    # ------------------------------------------------------------ as the server's loop knows it

    def expect(self, wanted: int) -> None:
        """So many answers make the next call complete."""
        self._wanted = wanted

    def clock(self) -> float:
        """Stands still. The exchange has judged by the plan's policy, on its own clock, who is late; the server's loop
        judges the same items again, however long it takes to fold them or how long ago they came."""
        return 0.0

    def run(self, work: Iterable[Task]) -> Generator[Answer | Failure, None, None]:
        wanted, self._wanted = self._wanted, None
        # Until the call is open, nobody else knows that the message's chunks are needed.
        with spans.span("other", "pack"), self._exchange.shelf.packing():
            tasks, asks = self._asked(work)
            if not tasks:
                return
            wanted = len(tasks) if wanted is None else wanted
            key = self._key(tasks[0], asks)
            failpoints.hit("call.packed")
            replayed = self._call(self._exchange.open(key, asks, wanted))
        if key.kind == "train":
            self._begin(key.round, replayed)
        yield from self._told(key, tasks, wanted, replayed)

    def seal(self, round: int, counted: Collection[str]) -> list[list[str]]:
        """The updates that the round was made of. Sites that have come since take part from the next round on."""
        plan = self.setting.plan
        steps = plan.algorithm.steps_a_round() if isinstance(plan.algorithm, Stepwise) else 1
        told = self._counted.pop(round, [])
        last = max((one.number for one in told), default=0) - steps
        if isinstance(self.setting.clients, Sites):
            alone = plan.algorithm.needs_everyone or isinstance(plan.algorithm, Stepwise)
            if not alone and round not in self._replayed:
                self._welcome(self.setting.clients, round + 1)
            self.setting.clients.begin(round + 1)
        return [[one.client, one.manifest] for one in told if one.number > last and one.client in counted]

    def close(self) -> None:
        """Lets go of the run: calls stay as they are."""
        self._exchange.detach(self._run)

    def rested(self, state: Any) -> Any:
        """In a file, where the engine has a folder for it: the sum of the updates needs the room."""
        if self._folder is not None:
            state = self._lying = aside.laid(state, self._folder)
        return state

    # ------------------------------------------------------------ asking

    def _begin(self, round: int, replayed: bool) -> None:
        """A call of this round is open: those before it are committed, and nobody will ask for their updates again."""
        if replayed:
            self._replayed.add(round)
        if round != self._round:
            self._round = round
            self._call(self._exchange.forget(self._run, round))
            self._exchange.shelf.clear()

    def _asked(self, work: Iterable[Task]) -> tuple[list[Task], list[Ask]]:
        """The tasks without their messages, and what the exchange needs to know of each."""
        tasks: list[Task] = []
        asks: list[Ask] = []
        last: tuple[Any, str] = (None, "")
        for task in work:
            if task.message is not last[0]:
                last = task.message, self._packed(task.message)
            tasks.append(replace(task, message={}))
            asks.append(Ask(task.client, last[1], self._said(task)))
        return tasks, asks

    def _packed(self, message: Any) -> str:
        """The digest of the message's manifest, once its chunks and the manifest are on the disk."""
        packed = Message.of(pack(message, "message", self._exchange.blobs.put))
        if self._exchange.ledger.document(packed.digest) is None:
            self._exchange.ledger.keep(packed.digest, packed.text, self._run)
        return packed.digest

    def _said(self, task: Task) -> dict[str, Any]:
        """What a site is told of its task, apart from what the exchange adds."""
        memory = self.setting.memories.get(task.client)
        names = ("run", "round", "version", "kind", "index", "place", "block", "seed", "discount")
        told = {name: getattr(task, name) for name in names}
        return {**told, "run": self._run, "memory": None if memory is None else {"task": memory["task"]}}

    def _key(self, task: Task, asks: Sequence[Ask]) -> CallKey:
        """The call's key: the next number of its kind in its round. Raises ResumeError for a call of another cohort."""
        asked, message = [ask.client for ask in asks], {ask.client: ask.message for ask in asks}
        while True:
            number = self._numbers.get((task.round, task.kind), 0)
            self._numbers[task.round, task.kind] = number + 1
            key = CallKey(self._run, task.round, task.kind, number)
            kept = self._kept.get(key)
            if kept is None or (list(kept.asked) == asked and dict(kept.message) == message):
                return key
            if task.kind == "train":
                raise ResumeError(
                    f"run {self._run}, round {task.round}: the ledger has asked other clients, or told them something"
                    " else, than this process would: was the plan, its code or a library changed since? Go on with"
                    " those that began the round"
                )

    # ------------------------------------------------------------ hearing

    def _told(
        self, key: CallKey, tasks: Sequence[Task], wanted: int, replayed: bool
    ) -> Generator[Answer | Failure, None, None]:
        arrived = heard = 0
        try:
            while True:
                with spans.span("idle", "sites"):
                    told = self._call(self._exchange.take(key))
                if told is None:
                    heard = len(tasks)
                    break
                item = self._item(key, tasks[told.index], told, replayed)
                heard += 1
                arrived += isinstance(item, Answer)
                yield item
                del item  # or the next one would be read while this one still takes its room
        finally:
            # A call that is not complete stays open: whatever has happened here, sites go on, and so does a restart.
            if arrived >= wanted or heard >= len(tasks):
                if key.kind == "train":
                    self._check_lying()
                void = key.kind == "train" and arrived < self.setting.plan.policy.least(wanted)
                why = f"{arrived} of {len(tasks)} have answered"
                self._call(self._exchange.close(key, f"{VOID if void else COUNTS}: {why}"))
                failpoints.hit("call.closed_before_commit")

    def _check_lying(self) -> None:
        """Raises StoreError where the disk has not taken the model, before anything is computed with it."""
        try:
            aside.check(self._lying)
        except OSError as error:
            raise StoreError(f"{self._folder}: the disk has lost what was written there: {error}") from error

    def _item(self, key: CallKey, task: Task, told: Told, replayed: bool) -> Answer | Failure:
        manifest = told.manifest
        if manifest is None:
            return Failure(task.client, task.index, task.block, told.error)
        stored = key.kind == "train" and self._adds_stored
        try:
            with spans.span("other", "unpack"):
                value = self._value(manifest, stored, replayed)
        except Refusal as error:
            return Failure(task.client, task.index, task.block, f"{error.code}: {error}")
        failpoints.hit("call.unpacked")
        if key.kind == "train":
            self._counted.setdefault(key.round, []).append(Counted(key.number, task.client, told.digest))
        memory = {"task": told.task} if manifest["keeps"] else None
        return Answer(task, Update(value, dict(manifest["weight"]), dict(manifest["metrics"])), memory, stored)

    def _value(self, manifest: Mapping[str, Any], stored: bool, replayed: bool) -> Any:
        """What a site told; ``stored``: its arrays stay on the disk. Raises Refusal."""
        blobs = self._exchange.blobs
        # Whoever saw the bytes come has compared them with their digest; once is enough for so many.
        if not stored:
            return unpack(manifest, blobs.read) if replayed else gathered(manifest, filling(blobs))
        if replayed:
            for digest in dict(manifest["chunks"]):
                blobs.read(digest)
        return left_there(manifest, blobs.fill)

    def _welcome(self, sites: Sites, round: int) -> None:
        new = sites.grow(round)
        if new:
            self.setting.notify(f"{', '.join(new)} take{'s' * (len(new) == 1)} part from round {round} on")


def first_numbers(kept: Iterable[Call], policy: Policy) -> dict[tuple[int, str], int]:
    """By round and kind, the number with which a run that goes on begins.

    It is 0, so that a restart hears again what has been said; but where all attempts of a round were void, the run had
    stopped for that, and whoever resumes it wants the sites to be asked anew.
    """
    attempts = 1 if policy.missed == "stop" else policy.retries + 1
    first: dict[tuple[int, str], int] = {}
    voids: dict[int, int] = {}
    for call in sorted(kept, key=lambda call: call.key.number):
        reasons = [str(entry.data.get("reason", "")) for entry in call.entries if entry.kind == "closed"]
        if call.key.kind == "train" and reasons and reasons[0].startswith(VOID):
            round = call.key.round
            voids[round] = voids.get(round, 0) + 1
            if voids[round] % attempts == 0:
                first[round, "train"] = call.key.number + 1
    return first
