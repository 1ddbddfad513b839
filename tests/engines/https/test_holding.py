"""After a restart: chunks that calls share stay until the last of them is over, whether it is taken up or not."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from insitu.core.errors import StoreError
from insitu.core.federation import Call, CallKey
from insitu.engines.https.calls.holding import Holding
from insitu.engines.https.calls.papers import Papers
from insitu.engines.https.calls.shelf import Shelf


class Blobs:
    def __init__(self, *digests: str) -> None:
        self.there = set(digests)

    def remove(self, digests) -> None:
        self.there -= set(digests)


class Ledger:
    """``named``: by call the chunks of its message. A message that is not in ``documents`` is lost."""

    def __init__(self, named: dict[CallKey, list[str]]) -> None:
        self.named = named
        self.documents = {str(key): chunks for key, chunks in named.items()}

    def submitted(self):
        return [SimpleNamespace(run=run) for run in sorted({key.run for key in self.named})]

    def calls(self, run: str):
        return [Call(key, ["berlin"], {"berlin": str(key)}, 0.0) for key in self.named if key.run == run]

    def document(self, digest: str):
        if digest not in self.documents:
            return None
        chunks = [[chunk, 1] for chunk in self.documents[digest]]
        return json.dumps({"chunks": chunks, "length": len(chunks), "tensors": []})


def key(run: str, round: int) -> CallKey:
    return CallKey(run, round, "train", 0)


async def at_once(function):
    await asyncio.sleep(0)
    return function()


def made(ledger: Ledger, *digests: str):
    blobs = Blobs(*digests)
    shelf, opened = Shelf(blobs), set()
    return blobs, shelf, opened, Holding(ledger, shelf, Papers(ledger, at_once), at_once, opened)


def test_what_two_rounds_share_goes_with_the_later_one():
    ledger = Ledger({key("a", 1): ["old", "both"], key("a", 2): ["both", "new"]})
    blobs, shelf, _, holding = made(ledger, "old", "both", "new")
    asyncio.run(holding.hold(ledger.calls("a")))
    holding.forgotten(key("a", 1))
    shelf.clear()
    assert blobs.there == {"both", "new"}
    shelf.use(["both", "new"])  # it is taken up
    holding.taken_up(key("a", 2))
    shelf.clear()
    assert blobs.there == {"both", "new"}
    shelf.drop(["both", "new"])
    shelf.clear()
    assert blobs.there == set()


def test_what_another_run_has_as_well_stays_though_nobody_has_taken_that_up():
    ledger = Ledger({key("a", 1): ["both"], key("b", 7): ["both"], key("c", 1): ["lost"], key("c", 2): ["kept"]})
    del ledger.documents[str(key("c", 1))]
    blobs, shelf, _, holding = made(ledger, "both", "kept")

    async def work():
        await holding.hold(ledger.calls("a"))
        await holding.take_stock()

    asyncio.run(work())
    holding.forgotten(key("a", 1))
    shelf.clear()
    assert blobs.there == {"both", "kept"}
    assert shelf.used() == {"both", "kept"}  # a call whose message is lost takes nothing from its neighbours


def test_a_lost_message_of_ones_own_run_is_said():
    ledger = Ledger({key("a", 1): ["x"]})
    ledger.documents.clear()
    _, _, _, holding = made(ledger)
    with pytest.raises(StoreError, match="lost"):
        asyncio.run(holding.hold(ledger.calls("a")))


def test_a_call_that_is_taken_up_while_its_papers_are_read_is_not_held_for_ever():
    ledger = Ledger({key("a", 1): ["x"]})
    blobs, shelf, opened, holding = made(ledger, "x")

    async def work():
        held = asyncio.ensure_future(holding.hold(ledger.calls("a")))
        again = asyncio.ensure_future(holding.hold(ledger.calls("a")))  # two runs that take stock
        await asyncio.sleep(0)
        opened.add(key("a", 1))
        shelf.use(["x"])
        holding.taken_up(key("a", 1))
        await asyncio.gather(held, again)

    asyncio.run(work())
    shelf.drop(["x"])
    shelf.clear()
    assert blobs.there == set()


def test_two_who_hold_the_same_hold_it_once():
    ledger = Ledger({key("a", 1): ["x"]})
    blobs, shelf, _, holding = made(ledger, "x")

    async def work():
        await asyncio.gather(*(holding.hold(ledger.calls("a")) for _ in range(2)))

    asyncio.run(work())
    holding.forgotten(key("a", 1))
    shelf.clear()
    assert blobs.there == set()
