"""How updates come in: chunk after chunk, a manifest at the end, looked at before they count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from insitu.core import failpoints
from insitu.core.errors import Refusal
from insitu.core.federation import Blobs, Ledger
from insitu.core.types import Context
from insitu.engines.https.calls import checking, machine
from insitu.engines.https.calls.accounts import Attached
from insitu.engines.https.calls.book import Book
from insitu.engines.https.calls.machine import Arrives, Fails, Knows, Refuses
from insitu.engines.https.calls.open_call import OpenCall
from insitu.engines.https.calls.papers import Durably
from insitu.engines.https.calls.presence import Presence
from insitu.engines.https.calls.shelf import Shelf
from insitu.engines.https.roster import declared as declared_of
from insitu.engines.https.wire.manifest import Manifest, checked
from insitu.engines.https.wire.packing import CHUNK, filling

SMALL = 16 * 2**10
"""Bytes of a manifest that is written into the journal itself; larger ones are documents."""
ROOM = 256 * 2**20
"""Bytes that an update may have in addition to four times what its message has."""


class Intake:
    """Takes updates for the calls in ``book`` of the ``runs`` that there are; see :class:`Exchange` for the rest."""

    def __init__(
        self, ledger: Ledger, blobs: Blobs, shelf: Shelf, book: Book, runs: Mapping[str, Attached], presence: Presence,
        durably: Durably, aside: Durably, largest: int, say: Callable[..., None],
    ) -> None:  # fmt: skip
        self.ledger, self.blobs, self.shelf, self.largest = ledger, blobs, shelf, largest
        self.aside, self.presence = aside, presence
        self.counts: Counter[str] = Counter()
        """accepted, duplicates, failed, bytes_in, bytes_out, and refused:CODE."""
        self._book, self._runs, self._durably, self._say = book, runs, durably, say
        self._checking = asyncio.Lock()

    def has(self, site: str, digest: str) -> bool:
        """Whether a chunk is there that this site has sent itself, or was given; others' are as if they were not."""
        return self._book.is_its_own(site, digest) and self.blobs.length(digest) is not None

    def takes(self, site: str, task: str) -> None:
        """Raises Refusal where nothing is taken for this task any more."""
        self._settled(self._book.call_of(site, task), site, {})

    @contextmanager
    def arriving(self, site: str, task: str, digest: str) -> Iterator[Callable[[], None]]:
        """Around the upload of a chunk; call what it gives once the chunk is whole. Raises Refusal.

        ROUND_CLOSED or STALE_ROUND where nothing is taken for the task any more, TOO_LARGE where the site has sent
        more for it than any update has, BUSY where the chunk is just being removed.
        """
        self.presence.heard(site)
        call = self._book.call_of(site, task)
        self._settled(call, site, {})
        if len(self._book.brought(call, site)) * CHUNK > self._limit(call, site) + CHUNK:
            raise Refusal("TOO_LARGE", "more chunks have come for this task than any update of it has")
        if not self.shelf.begin(digest):
            raise Refusal("BUSY", f"chunk {digest} is just being removed", 1.0)
        try:
            yield lambda: self._book.brings(call, site, [digest])
        finally:
            self.shelf.end(digest)

    async def missing(self, site: str, task: str, chunks: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Which of these chunks the site has to send, and from which byte on. Raises Refusal as ``arriving``.

        One that only others have sent counts as missing: else it would tell what they hold.
        """
        self.presence.heard(site)
        call = self._book.call_of(site, task)
        if call.state.who[site].phase == "arrived":
            return []
        self._settled(call, site, {})

        def look() -> list[tuple[str, int]]:
            return [(digest, self.blobs.arrived(site, digest)) for digest, _ in chunks if not self.has(site, digest)]

        return await self.aside(look)  # type: ignore[no-any-return]

    async def accept(self, site: str, task: str, value: Any) -> bool:
        """An update counts, durably; True where it did already. Raises Refusal where it must not, StoreError.

        A refused one counts as the site's failure in this call, so that the round of the others goes on; only where
        sending chunks again can help (MISSING_CHUNKS), or it comes too late, nothing changes.
        """
        self.presence.heard(site, "waiting")
        call = self._book.call_of(site, task)
        try:
            manifest = checked(value, self._limit(call, site), "update")
            data: dict[str, Any] = {"manifest": manifest.id, "bytes": manifest.length}
            if len(manifest.text) <= SMALL:
                data["text"] = manifest.text
            if self._settled(call, site, data):
                return True
            await self._check(call, site, manifest)
        except Refusal as refusal:
            await self._refused(call, site, refusal)
            raise
        await self._durably(lambda: self._keep(manifest, call.call.key.run, "text" not in data))
        failpoints.hit("update.before_entry")
        effects = await call.happen(Arrives(site, data))
        failpoints.hit("update.before_ack")
        known = was_known(effects)
        self.counts["duplicates" if known else "accepted"] += 1
        return known

    async def fail(self, site: str, task: str, code: str, error: str) -> bool:
        """A site says that there will be no update; True where that was known. Raises Refusal, StoreError."""
        self.presence.heard(site, "waiting")
        known = was_known(await self._book.call_of(site, task).happen(Fails(site, f"{code}: {error}")))
        self.counts["failed"] += not known
        return known

    # ------------------------------------------------------------ inside

    def _settled(self, call: OpenCall, site: str, data: Mapping[str, Any]) -> bool:
        """Whether this update counts already. Raises Refusal where it comes too late, or another one counts."""
        if call.state.who[site].seq < 0 and not call.state.ends:
            return False
        known = was_known(machine.step(call.state, Arrives(site, data), call.now())[1])
        self.counts["duplicates"] += known
        return known

    def _limit(self, call: OpenCall, site: str) -> int:
        """Bytes that a site's update may have in this call."""
        return min(self.largest, 4 * self._book.message_of(call, site).length + ROOM)

    async def _check(self, call: OpenCall, site: str, manifest: Manifest) -> None:
        """Raises Refusal where this must not count for the site's task, as far as can be known."""
        key, task, message = call.call.key, call.tasks[site], self._book.message_of(call, site)
        if manifest.task != task["task"]:
            raise Refusal("BAD_UPDATE", f"the update is for task {manifest.task}, and was sent for {task['task']}")
        if manifest.base != message.digest:
            raise Refusal("BAD_UPDATE", f"the update is for model {manifest.base}, and the task has {message.digest}")
        there = await self.aside(lambda: {digest for digest, _ in manifest.chunks if self.has(site, digest)})
        self._book.brings(call, site, there)
        lost = [digest for digest, _ in manifest.chunks if digest not in there]
        if lost:
            raise Refusal("MISSING_CHUNKS", f"{len(lost)} of {len(manifest.chunks)} chunks are missing: {lost[0]}")
        run = self._runs[key.run]
        if key.kind == "train":
            checking.check_weight(manifest, declared_of(run.declared(site), "examples"))
        context, asked = Context(key.round, 0, seed=int(task.get("seed", 0)), client=site), len(call.call.asked)

        def look() -> None:
            # The digests were compared when the chunks came: nobody does it again.
            fill = filling(self.blobs)
            checking.check_update(run.plan, key.kind, manifest, message, fill, asked, context)

        async with self._checking:  # one at a time: a packed one is unpacked as a whole
            await self.aside(look)

    async def _refused(self, call: OpenCall, site: str, refusal: Refusal) -> None:
        key = call.call.key
        self.counts[f"refused:{refusal.code}"] += 1
        self._say("warning", "an update is refused", run=key.run, round=key.round, site=site, reason=str(refusal))
        if refusal.code not in ("MISSING_CHUNKS", "ROUND_CLOSED", "STALE_ROUND", "BUSY"):
            await call.happen(Fails(site, f"{refusal.code}: {refusal}"))

    def _keep(self, manifest: Manifest, run: str, document: bool) -> None:
        self.blobs.sync()
        if document:
            self.ledger.keep(manifest.id, manifest.text, run)


def was_known(effects: Sequence[machine.Effect]) -> bool:
    """Whether an event said what was known already. Raises Refusal where it was refused."""
    for effect in effects:
        if isinstance(effect, Refuses):
            raise Refusal(effect.code, effect.text)
    return any(isinstance(effect, Knows) for effect in effects)
