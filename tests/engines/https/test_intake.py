"""What sites send: what counts, what does not and why, and what is never told to anyone."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from federations import Federation, ask, fedavg, manifest_of, packed_message, send, tables

from insitu.compress.quantize import Quantize
from insitu.core.errors import DiskFull, Fenced, Refusal, StoreError
from insitu.core.federation import CallKey
from insitu.core.types import Answer, Context, Task, Update
from insitu.engines.https.calls import checking
from insitu.engines.https.calls.values import Message
from insitu.engines.https.exchange import Exchange
from insitu.engines.https.wire.manifest import checked
from insitu.engines.https.wire.packing import CHUNK, pack
from insitu.rounds.policy import Policy

KEY = CallKey("run", 1, "train", 0)
MODEL = {"shared": {"w": np.ones((3, 2), np.float32), "v": np.ones((3, 2), np.float32)}, "buffers": {}}


class Room:
    """An exchange with one open call that asks everyone, on the loop of the test."""

    def __init__(self, model=MODEL, key=KEY, sites=None, **more):
        clients = tables()
        self.federation = Federation(clients, fedavg(clients, **more))
        self.model, self.key, self.sites = model, key, sites or self.federation.names

    async def __aenter__(self):
        async def at_once(function):
            await asyncio.sleep(0)
            return function()

        ledger, blobs = self.federation.ledger, self.federation.blobs
        self.exchange = self.federation.exchange = Exchange(ledger, blobs, durably=at_once, aside=at_once, poll=1.0)
        people = ledger.people
        await self.exchange.attach("run", self.federation.plan, "d" * 64, lambda name: people[name].declared)
        await self.open(self.key)
        return self

    async def __aexit__(self, *_):
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def open(self, key, wanted=None):
        self.message = packed_message(self.federation, self.model)
        asks = [ask(name, self.message, i) for i, name in enumerate(self.sites)]
        return await self.exchange.open(key, asks, wanted or len(asks))

    async def task(self, site):
        return await self.exchange.next_task(site, 0)

    async def send(self, site, value=None, weight=None, told=None, **changes):
        told = told or await self.task(site)
        value = {"shared": MODEL["shared"]} if value is None else value
        update = Update(value, dict.fromkeys(value, 2.0) if weight is None else weight, {"examples": 2.0})
        task = Task("run", 1, 0, told["kind"], site, {}, 7)
        return await send(self.federation, site, told, Answer(task, update), **changes)

    def standing(self, site, key=KEY):
        standing = self.exchange._book[key].state.who[site]
        return standing.phase, str(standing.data.get("error", ""))


def run(coroutine):
    return asyncio.run(coroutine)


def with_(name, value):
    return {"shared": {**MODEL["shared"], name: value}}


def spoilt(value, at=(2, 1)):
    array = np.ones((3, 2), np.float32)
    array[at] = value
    return with_("w", array)


BAD = {
    "NaN": (spoilt(np.nan), {}, "BAD_UPDATE", r"shared/w\[5\] is nan"),
    "Inf": (spoilt(-np.inf, (0, 1)), {}, "BAD_UPDATE", r"shared/w\[1\] is -inf"),
    "too large to be summed": (spoilt(1e38), {}, "BAD_UPDATE", r"w\[5\] is 1e\+38, too large"),
    "shape": (with_("w", np.ones((2, 3), np.float32)), {}, "BAD_UPDATE", r"w has the shape \[2, 3\], not \[3, 2\]"),
    "rank": (with_("w", np.ones(6, np.float32)), {}, "BAD_UPDATE", "has the shape"),
    "dtype": (with_("w", np.ones((3, 2))), {}, "BAD_UPDATE", "dtype float64, not float32"),
    "whole numbers": (with_("w", np.ones((3, 2), np.int32)), {}, "BAD_UPDATE", "dtype int32"),
    "missing": ({"shared": {"w": MODEL["shared"]["w"]}}, {}, "BAD_UPDATE", "shared/v is missing"),
    "none of it": ({"other": {"x": np.ones(1)}}, {}, "BAD_UPDATE", "is missing from shared"),
    "extra": (with_("u", np.ones(1, np.float32)), {}, "BAD_UPDATE", "shared/u is not in the model"),
    "no array": (with_("w", 3.0), {}, "BAD_UPDATE", "shared/w is a float"),
    "a list": (with_("w", [1.0]), {}, "BAD_UPDATE", "shared/w is a list"),
    "of another library": (with_("w", torch.ones(3, 2)), {}, "BAD_UPDATE", "torch array"),
    "a part without a weight": (None, {"weight": {}}, "BAD_UPDATE", "weights for"),
    "a weight without a part": (None, {"weight": {"shared": 1.0, "x": 1.0}}, "BAD_UPDATE", "weights for"),
    "weight 0": (None, {"weight": {"shared": 0.0}}, "BAD_WEIGHT", "not above 0"),
    "weight below 0": (None, {"weight": {"shared": -1.0}}, "BAD_WEIGHT", "not above 0"),
    "weight beyond the examples": (None, {"weight": {"shared": 7.0}}, "BAD_WEIGHT", "at most 6"),
    "weight 2^63": (None, {"weight": {"shared": float(2**63)}}, "BAD_WEIGHT", "at most 6"),
    "weight no number": (None, {"weight": {"shared": "2"}}, "BAD_MANIFEST", "no finite number"),
    "another model": (None, {"base": "0" * 64}, "BAD_UPDATE", "for model 000"),
    "another task": (None, {"task": "0" * 32}, "BAD_UPDATE", "for task 000"),
    "length": (None, {"length": 5}, "BAD_MANIFEST", "manifest is refused"),
    "a message": (None, {"holds": "message"}, "BAD_MANIFEST", "not an update"),
    "tensors of another": (None, {"tensors": []}, "BAD_MANIFEST", "table of tensors"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_update_is_refused_by_name_and_the_others_go_on(name):
    value, changes, code, says = BAD[name]

    async def scene():
        async with Room() as room:
            assert room.federation.ledger.people["a"].declared["examples"] == 6
            weight = changes.get("weight")
            with pytest.raises(Refusal, match=says) as refused:
                await room.send("a", value, **{k: v for k, v in changes.items() if k != "weight"} | (
                    {} if weight is None else {"weight": weight}
                ))  # fmt: skip
            assert refused.value.code == code
            phase, error = room.standing("a")
            assert phase == "failed"
            assert error.startswith(f"{code}: ")
            for site in "bcd":
                assert await room.send(site) is False
            told = [await room.exchange.take(KEY) for _ in range(4)]
            assert [one.client for one in told if one.manifest] == ["b", "c", "d"]
            assert await room.exchange.take(KEY) is None

    run(scene())


def test_numbers_that_are_odd_but_numbers_count():
    odd = np.array([[-0.0, 1e-45], [1e-39, 1.0], [-1e30, 3e7]], np.float32)

    async def scene():
        async with Room() as room:
            assert await room.send("a", with_("w", odd)) is False
            assert room.standing("a")[0] == "arrived"

    run(scene())


def test_the_same_update_again_counts_once_and_another_one_never():
    async def scene():
        async with Room() as room:
            told = await room.task("a")
            assert await room.send("a", told=told) is False
            assert await room.send("a", told=told) is True
            both = [room.send("b", told=await room.task("b")) for _ in range(2)]
            assert sorted(await asyncio.gather(*both)) == [False, True]
            digests = set(room.federation.blobs.whole)
            with pytest.raises(Refusal) as refused:
                await room.send("a", spoilt(2.0), told=told)
            assert refused.value.code == "STALE_ROUND"
            assert set(room.federation.blobs.whole) == digests
            entries = room.federation.ledger.kept[KEY].entries
            assert [(entry.seq, entry.client) for entry in entries] == [(0, "a"), (1, "b")]

    run(scene())


def test_who_may_send_for_what():
    async def scene():
        async with Room() as room:
            mine = await room.task("a")
            for site, task in (("b", mine["task"]), ("a", "0" * 32), ("nobody", mine["task"])):
                with pytest.raises(Refusal) as refused:
                    await room.exchange.accept(site, task, {})
                assert refused.value.code == "UNKNOWN_TASK"
            assert room.standing("a")[0] == "working"
            await room.exchange.revoked("a")
            with pytest.raises(Refusal) as refused:
                await room.send("a", told=mine)
            assert refused.value.code == "ROUND_CLOSED"
            assert room.standing("a")[1].startswith("REVOKED")
            assert await room.task("a") is None
            await room.open(CallKey("run", 1, "train", 1))  # asked again, it has failed before it begins
            assert room.standing("a", CallKey("run", 1, "train", 1))[0] == "failed"

    run(scene())


def test_an_answer_to_a_round_that_is_over_is_late_or_stale():
    async def scene():
        async with Room(policy=Policy(over_select=1.0)) as room:
            key = CallKey("run", 1, "train", 1)
            await room.open(key, wanted=2)
            names = room.federation.names
            await room.exchange.close(KEY, "void: tried again")
            late = {site: await room.task(site) for site in names}
            assert {one["task"] for one in late.values()} == set(room.exchange._book._tasks) - {
                one["task"] for one in room.exchange._book[KEY].tasks.values()
            }
            for site in ("d", "a"):
                await room.send(site, told=late[site])
            with pytest.raises(Refusal) as refused:
                await room.send("b", told=late["b"])
            assert refused.value.code == "ROUND_CLOSED"
            assert await room.exchange.alive("b", late["b"]["task"], "training") == (
                False, "2 of 4 have answered, as many as were wanted",
            )  # fmt: skip
            told = [await room.exchange.take(key) for _ in range(2)]
            assert [one.client for one in told] == ["a", "d"]
            assert await room.exchange.take(key) is None
            await room.exchange.close(key, "counts: enough")
            assert await room.send("a", told=late["a"]) is True  # whoever has not heard of it is told again
            await room.exchange.forget("run", 2)
            for site in ("a", "b"):
                with pytest.raises(Refusal) as refused:
                    await room.send(site, told=late[site])
                assert refused.value.code == "STALE_ROUND"

    run(scene())


def test_a_chunk_of_another_sites_is_as_if_it_were_not_there():
    async def scene():
        async with Room() as room:
            first, second = await room.task("a"), await room.task("b")
            await room.send("a", spoilt(5.0), told=first)
            theirs = set(room.federation.blobs.whole) - set(room.message.chunks)
            chunks = [(digest, 1) for digest in (*theirs, *room.message.chunks)]
            assert await room.exchange.missing("b", second["task"], chunks) == [(digest, 0) for digest in theirs]
            assert not any(room.exchange.may_read("b", digest) for digest in theirs)
            assert all(room.exchange.may_read("b", digest) for digest in room.message.chunks)
            assert not any(room.exchange.may_read("nobody", digest) for digest in room.message.chunks)
            value = {"shared": spoilt(5.0)["shared"]}
            update = Update(value, {"shared": 2.0})
            manifest = manifest_of(second, Answer(Task("run", 1, 0, "train", "b", {}, 7), update),
                                   lambda data: hashlib.sha256(data).hexdigest())  # fmt: skip
            with pytest.raises(Refusal) as refused:
                await room.exchange.accept("b", second["task"], manifest)
            assert refused.value.code == "MISSING_CHUNKS"
            assert room.standing("b")[0] == "working"  # it may send them, and then it counts
            assert await room.send("b", value, told=second) is False

    run(scene())


def test_documents_are_for_those_who_are_asked_with_them():
    async def scene():
        async with Room(sites=["a", "b"]) as room:
            told = await room.task("a")
            assert await room.exchange.document("a", told["message"]) == room.message.text
            for site, digest in (("c", told["message"]), ("a", "0" * 64), ("nobody", told["message"])):
                with pytest.raises(Refusal) as refused:
                    await room.exchange.document(site, digest)
                assert refused.value.code == "NOT_FOUND"

    run(scene())


def test_more_chunks_than_an_update_can_have_are_too_many(monkeypatch):
    monkeypatch.setattr("insitu.engines.https.calls.intake.ROOM", 2 * CHUNK)

    async def scene():
        async with Room() as room:
            told = await room.task("a")
            count = 0

            def bring_on():
                nonlocal count
                while True:
                    with room.exchange.arriving("a", told["task"], f"{count:064d}") as whole:
                        whole()
                    count += 1

            with pytest.raises(Refusal) as refused:
                bring_on()
            assert refused.value.code == "TOO_LARGE"
            assert 3 <= count <= 5

    run(scene())


# ------------------------------------------------------------ looking at it


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64", "bfloat16"])
def test_every_number_is_looked_at_whatever_its_dtype(dtype):
    n = 70_001
    array = torch.zeros(n, dtype=torch.bfloat16) if dtype == "bfloat16" else np.zeros(n, dtype)
    plan = fedavg(tables())
    for at in (0, 1, n - 1):
        array[at] = float("inf")
        with pytest.raises(Refusal, match=rf"other/x\[{at}\] is "):
            look(plan, {"other": {"x": array}})
        array[at] = 0
    look(plan, {"other": {"x": array}})


def look(plan, value, kind="predict", message=None, weight=1.0):
    blobs = Federation(tables(), plan).blobs
    about = {"task": "0" * 32, "base": "0" * 64, "weight": dict.fromkeys(value, weight), "metrics": {}, "keeps": False}
    manifest = checked({**pack(value, "update", blobs.put), **about}, 2**40, "update")
    told = Message.of(pack({} if message is None else message, "message", blobs.put))
    if kind == "predict" and message is None:
        kinds = {"x": torch.zeros(1)} if isinstance(next(iter(value.values()))["x"], torch.Tensor) else {}
        told = Message.of(pack(kinds, "message", blobs.put))
    checking.check_update(plan, kind, manifest, told, blobs.fill, 3, Context(1, 0, seed=7, client="a"))


def test_an_update_that_stages_packed_is_unpacked_and_looked_at():
    plan = fedavg(tables(), stages=(Quantize(bits=8),))
    stage = plan.stages[0]
    context = Context(1, 0, seed=7, client="a")
    update, _ = stage.encode(Update({"shared": MODEL["shared"]}, {"shared": 2.0}), None, context)
    look(plan, update.value, "train", MODEL, 2.0)
    with pytest.raises(Refusal, match="stages cannot unpack it") as refused:
        look(plan, {"shared": {"w": np.ones(3)}}, "train", MODEL, 2.0)
    assert refused.value.code == "BAD_UPDATE"
    smaller = {"shared": {"w": np.ones((2, 2), np.float32), "v": MODEL["shared"]["v"]}}
    update, _ = stage.encode(Update(smaller, {"shared": 2.0}), None, context)
    with pytest.raises(Refusal, match=r"shared/w has the shape \[2, 2\]"):
        look(plan, update.value, "train", MODEL, 2.0)


def test_looking_takes_the_memory_of_a_few_chunks_however_large_the_update():
    plan, blobs = fedavg(tables()), Federation(tables(), fedavg(tables())).blobs
    value = {"shared": {"w": np.ones((4096, 4096), np.float32)}}  # 64 MiB
    message = Message.of(pack(value, "message", blobs.put))
    about = {"task": "0" * 32, "base": "0" * 64, "weight": {"shared": 1.0}, "metrics": {}, "keeps": False}
    manifest = checked({**pack(value, "update", blobs.put), **about}, 2**40, "update")
    del value
    seen = []

    def fill(digest, offset, room):
        seen.append(resident())
        return blobs.fill(digest, offset, room)

    checking.check_update(plan, "train", manifest, message, fill, 3, Context(1, 0))
    assert len(seen) > 16 * 16
    assert max(seen) - seen[0] < CHUNK


def resident():
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ------------------------------------------------------------ when it cannot be written down


def test_what_could_not_be_written_down_is_not_acknowledged_and_may_be_sent_again():
    async def scene():
        async with Room() as room:
            told = await room.task("a")
            room.federation.ledger.trouble = [DiskFull("no space left")]
            with pytest.raises(DiskFull):
                await room.send("a", told=told)
            assert room.standing("a")[0] == "working"
            assert await room.send("a", told=told) is False
            assert len(room.federation.ledger.kept[KEY].entries) == 1

    run(scene())


def test_a_write_of_which_nobody_knows_counts_once():
    async def scene():
        async with Room() as room:
            told, ledger = await room.task("a"), room.federation.ledger
            real = ledger.append

            def append(key, entries):
                real(key, entries)
                ledger.append = real
                raise StoreError("the connection broke after COMMIT was sent")

            ledger.append = append
            with pytest.raises(StoreError, match="COMMIT"):
                await room.send("a", told=told)
            assert await room.send("a", told=told) is True
            assert await room.send("b") is False
            assert [entry.client for entry in ledger.kept[KEY].entries] == ["a", "b"]

    run(scene())


def test_a_coordinator_that_another_took_over_from_says_so_to_its_run():
    async def scene():
        async with Room() as room:
            told = await room.task("a")
            waiting = asyncio.ensure_future(room.exchange.take(KEY))
            room.federation.ledger.trouble = [Fenced("another coordinator leads")]
            with pytest.raises(Fenced):
                await room.send("a", told=told)
            with pytest.raises(Fenced):
                await waiting
            with pytest.raises(Fenced):
                await room.send("b", told=told | {"task": task_of(room, "b")})

    run(scene())


def task_of(room, site):
    return room.exchange._book[KEY].tasks[site]["task"]


def test_a_deadline_that_cannot_be_written_down_comes_later():
    async def scene():
        async with Room(policy=Policy(deadline=timedelta(seconds=0.05))) as room:
            room.federation.ledger.trouble = [DiskFull("no space left")]
            told = [await asyncio.wait_for(room.exchange.take(KEY), 5) for _ in range(4)]
            assert [one.error.partition(":")[0] for one in told] == ["DeadlineError"] * 4

    run(scene())


def test_a_client_that_is_not_heard_of_is_gone_and_one_that_waits_for_work_is_not():
    async def scene():
        async with Room(policy=Policy(gone=timedelta(seconds=0.3))) as room:
            for site in "bcd":
                await room.task(site)

            async def at_work():
                while True:
                    await asyncio.sleep(0.05)
                    for site in "bcd":
                        await room.exchange.alive(site, task_of(room, site), "training")

            alive = asyncio.ensure_future(at_work())
            told = await asyncio.wait_for(room.exchange.take(KEY), 5)
            assert (told.client, told.error.partition(":")[0]) == ("a", "GoneError")
            alive.cancel()
            status = room.exchange.status("run")
            assert (status["failed"], status["accepted"], status["asked"]) == (1, 0, 4)
            assert [one["site"] for one in status["waiting_for"]] == ["b", "c", "d"]
            assert status["waiting_for"][0]["phase"] == "training"

    run(scene())


def test_nobody_waits_for_ever_for_a_call_that_has_ended():
    """Answers that come while the last ones are written down are told what became of the call."""

    async def scene():
        async with Room() as room:
            tasks = {site: await room.task(site) for site in room.federation.names}
            sent = [asyncio.ensure_future(room.send(site, told=told)) for site, told in tasks.items()]
            await asyncio.sleep(0)
            await room.exchange.close(KEY, "void: that is enough")
            done = await asyncio.wait_for(asyncio.gather(*sent, return_exceptions=True), 5)
            assert all(one is False or one.code in ("ROUND_CLOSED", "BUSY") for one in done)

    run(scene())
