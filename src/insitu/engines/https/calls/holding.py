"""Chunks of calls in the ledger that were not taken up since this process began: held, for others may share them."""

from __future__ import annotations

from collections.abc import Container, Iterable
from contextlib import suppress
from functools import partial

from insitu.core.errors import StoreError
from insitu.core.federation import Call, CallKey, Ledger
from insitu.engines.https.calls.papers import Durably, Papers
from insitu.engines.https.calls.shelf import Shelf


class Holding:
    """``opened`` has the calls that were taken up. Raises StoreError where documents that calls name are lost."""

    def __init__(
        self, ledger: Ledger, shelf: Shelf, papers: Papers, durably: Durably, opened: Container[CallKey]
    ) -> None:
        self._ledger, self._shelf, self._papers, self._durably, self._opened = ledger, shelf, papers, durably, opened
        self._held: dict[CallKey, set[str]] = {}
        self._stock_taken = False

    async def hold(self, calls: Iterable[Call]) -> None:
        """Nothing of these is removed before they are taken up, or forgotten."""
        for call in calls:
            if self._waits(call.key):
                chunks = await self._papers.chunks(call)
                if self._waits(call.key):  # it may have been taken up meanwhile, or held by somebody else
                    self._held[call.key] = chunks
                    self._shelf.use(chunks)

    async def take_stock(self) -> None:
        """Holds the calls of all runs, once: to be done before anything is removed."""
        if not self._stock_taken:
            for run in await self._durably(self._ledger.submitted):
                calls = await self._durably(partial(self._ledger.calls, run.run))
                for call in calls:
                    with suppress(StoreError):  # what is wrong with that run is said when it is taken up
                        await self.hold([call])
            self._stock_taken = True

    def taken_up(self, key: CallKey) -> None:
        """Whoever has taken it up has said what it uses."""
        self._shelf.drop(self._held.pop(key, ()), rubbish=False)

    def forgotten(self, key: CallKey) -> None:
        """What only it had is rubbish."""
        self._shelf.drop(self._held.pop(key, ()))

    def _waits(self, key: CallKey) -> bool:
        return key not in self._opened and key not in self._held
