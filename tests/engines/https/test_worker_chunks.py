"""Chunks that come and go by way of workers: as without them, whatever dies in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest
from fleets import CHUNK, digest_of, manned, until
from ports import Caller, Federation, asked

from insitu.core import failpoints
from insitu.store.blobs.files import RealFiles
from insitu.store.blobs.folder import FolderBlobs
from insitu.store.blobs.opened import open_blobs

DIGEST, LENGTH = digest_of(CHUNK), len(CHUNK)


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    made.tls = made.client_tls(made.member("berlin"))
    made.paris = made.client_tls(made.member("paris"))
    return made


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 90))


def path(digest=DIGEST, offset=0, length=LENGTH, task="t"):
    return f"/v1/tasks/{task}/chunks/{digest}?offset={offset}&length={length}"


def head(offset, length=LENGTH, announced=None):
    announced = length - offset if announced is None else announced
    return f"PUT {path(offset=offset)} HTTP/1.1\r\nhost: x\r\ncontent-length: {announced}\r\n\r\n".encode()


def told(answer):
    status, body = answer
    return status, json.loads(body)


def in_parts(federation):
    """Bytes of a part that are on the disk now, whether they are synced or not."""
    return sum(one.stat().st_size for one in (federation.folder / "blobs" / "parts").rglob("*.*"))


async def broken_off(port, federation, upto, offset=0):
    """Sends a part of the chunk, and goes away."""
    caller = await Caller.to(port, federation.tls)
    await caller.send(head(offset) + CHUNK[offset:upto])
    await until(lambda: in_parts(federation) == upto)
    await caller.close()
    await until(lambda: port.chunks.uploads == 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_answer_about_a_chunk(federation, workers):
    """The same codes with workers and without."""
    wrong = digest_of(b"something else")

    async def answers():
        async with manned(federation, workers) as port:
            tls, mine = federation.tls, port.held_chunks
            found = [
                told(await asked(port, tls, path("x"), "PUT", b"x")),
                told(await asked(port, tls, path(task="other"), "PUT", CHUNK)),
                told(await asked(port, tls, path(length=10), "PUT", CHUNK)),
                told(await asked(port, tls, path(offset=7), "PUT", CHUNK[7:])),
                told(await asked(port, tls, path(wrong), "PUT", CHUNK)),
                told(await asked(port, tls, path(), "PUT", CHUNK[:1000])),
                told(await asked(port, tls, path(offset=1000), "PUT", CHUNK[1000:])),
                told(await asked(port, tls, path(), "PUT", CHUNK)),
                told(await asked(port, tls, f"/v1/chunks/{DIGEST}")),
            ]
            mine.messages.add(("berlin", DIGEST))
            whole = await asked(port, tls, f"/v1/chunks/{DIGEST}")
            others = told(await asked(port, federation.paris, f"/v1/chunks/{DIGEST}"))
            caller = await Caller.to(port, tls)
            await caller.send(f"GET /v1/chunks/{DIGEST} HTTP/1.1\r\nhost: x\r\nrange: bytes=900000-\r\n\r\n".encode())
            some = await caller.answer()
            await caller.close()
            if workers:
                await until(lambda: port.fleet.counts()["accepted"] == 12)
            assert mine.blobs.read(DIGEST) == CHUNK
            assert mine.arriving_now.total() == 0
            return found, whole, some, others, dict(mine.counts), port.counts["accepted"]

    found, whole, some, others, counts, accepted = run(answers())
    assert [(status, one.get("error", one.get("offset"))) for status, one in found] == [
        (400, "BAD_REQUEST"), (404, "UNKNOWN_TASK"), (413, "TOO_LARGE"), (416, "BAD_OFFSET"), (422, "BAD_DIGEST"),
        (200, 1000), (200, len(CHUNK)), (200, len(CHUNK)), (404, "NOT_FOUND"),
    ]  # fmt: skip
    assert found[5][1] == {"offset": 1000, "done": False}
    assert found[6][1] == {"offset": len(CHUNK), "done": True}
    assert whole == (200, CHUNK)
    assert some == (206, CHUNK[900_000:])
    assert others == found[-1]  # it is not told that somebody else has it
    assert counts == {"bytes_in": 2 * len(CHUNK), "bytes_out": 2 * len(CHUNK) - 900_000}
    assert accepted == (0 if workers else 12)


def test_an_upload_goes_on_where_it_broke_off_whoever_had_it(federation):
    """By another worker, and from what was kept last where the worker itself was killed in the middle of it."""

    async def killed():
        async with manned(federation, 2) as port:
            mine = port.held_chunks
            await broken_off(port, federation, 300_000)
            assert mine.blobs.arrived("berlin", DIGEST) == 300_000
            caller = await Caller.to(port, federation.tls)
            await caller.send(head(300_000) + CHUNK[300_000:800_000])
            await until(lambda: in_parts(federation) == 800_000 and port.fleet.open("uploads") == 1)
            (hand,) = [hand for hand in port.fleet.there if hand.open["uploads"]]
            os.kill(hand.pid, signal.SIGKILL)
            assert await caller.ended(2.0)
            await until(lambda: port.chunks.uploads == 0, 2.0)
            released = mine.arriving_now.total(), dict(port.chunks._coming)
            kept = mine.blobs.arrived("berlin", DIGEST)
            await caller.close()
            again = told(await asked(port, federation.tls, path(offset=kept), "PUT", CHUNK[kept:]))
            return kept, released, again, mine.blobs.read(DIGEST) == CHUNK, mine.brought

    kept, released, (status, body), same, brought = run(killed())
    assert kept == 300_000  # what was written after that was not synced
    assert released == (0, {})
    assert (status, body) == (200, {"offset": len(CHUNK), "done": True})
    assert same
    assert brought == {("berlin", DIGEST)}


def test_a_chunk_that_comes_anew_ends_the_connection_by_which_it_came(federation):
    async def anew():
        async with manned(federation, 2) as port:
            first, second = await Caller.to(port, federation.tls), await Caller.to(port, federation.tls)
            await until(lambda: sorted(hand.held for hand in port.fleet.there) == [1, 1])
            await first.send(head(0) + CHUNK[:1000])
            await until(lambda: in_parts(federation) == 1000)

            async def goes_on():
                for at in range(1000, 500_000, 1000):
                    await first.send(CHUNK[at : at + 1000])
                    await asyncio.sleep(0.01)

            going = asyncio.create_task(goes_on())
            await second.send(head(0) + CHUNK)
            refused = told(await second.answer())
            given_up, _ = await first.answer()
            going.cancel()
            kept = refused[1]["message"].split()[0]  # so many bytes are there
            rest = told(await asked(port, federation.tls, path(offset=int(kept)), "PUT", CHUNK[int(kept) :]))
            for caller in (first, second):
                await caller.close()
            return refused, given_up, rest, port.held_chunks.blobs.read(DIGEST) == CHUNK

    refused, given_up, rest, same = run(anew())
    assert (refused[0], refused[1]["error"]) == (416, "BAD_OFFSET")  # the first one's bytes were kept
    assert given_up == 499  # to whoever is still there
    assert rest == (200, {"offset": len(CHUNK), "done": True})
    assert same


@pytest.mark.parametrize(
    ("place", "expected"),
    [("blob.fsync.before=full", (507, "DISK_FULL")), ("blob.fsync.before=error", (500, "BROKEN"))],
)
def test_a_disk_that_fails_in_a_worker(federation, monkeypatch, place, expected):
    monkeypatch.setenv(failpoints.VARIABLE, place)

    async def fails():
        async with manned(federation, 1) as port:
            first = told(await asked(port, federation.tls, path(), "PUT", CHUNK))
            again = told(await asked(port, federation.tls, path(), "PUT", CHUNK))
            return first, again

    (status, body), again = run(fails())
    assert (status, body["error"]) == expected
    assert again == (200, {"offset": len(CHUNK), "done": True})


def test_a_worker_that_follows_one_that_died_of_a_failpoint_does_not_die_of_it(federation, monkeypatch):
    monkeypatch.setenv(failpoints.VARIABLE, "chunk.before_finish")

    async def dies():
        async with manned(federation, 1) as port:
            with pytest.raises(ConnectionError):
                await asked(port, federation.tls, path(), "PUT", CHUNK)
            await until(lambda: port.fleet.started == 2 and port.fleet.there)
            return told(await asked(port, federation.tls, path(), "PUT", CHUNK)), port.counts["accepted"]

    assert run(dies()) == ((200, {"offset": len(CHUNK), "done": True}), 0)


def test_a_drain_keeps_what_has_come(federation):
    async def drained():
        async with manned(federation, 1) as port:
            caller = await Caller.to(port, federation.tls)
            await caller.send(head(0) + CHUNK[:400_000])
            await until(lambda: in_parts(federation) == 400_000)
            await asyncio.gather(port.stop(0.3), port.fleet.stop(0.3))
            await caller.close()
            return port.held_chunks.blobs.arrived("berlin", DIGEST), port.held_chunks.arriving_now.total()

    assert run(drained()) == (400_000, 0)


def test_a_chunk_that_is_lost_is_no_endless_wait(federation):
    async def lost():
        async with manned(federation, 1) as port:
            port.held_chunks.messages.add(("berlin", DIGEST))
            never = told(await asked(port, federation.tls, f"/v1/chunks/{DIGEST}"))
            await asyncio.to_thread(port.held_chunks.blobs.put, CHUNK)
            length, blobs = port.held_chunks.blobs.length, port.held_chunks.blobs

            def removed(digest):
                found = length(digest)
                blobs.remove([digest])
                return found

            blobs.length = removed  # between the main process's look and the worker's
            return never, told(await asked(port, federation.tls, f"/v1/chunks/{DIGEST}"))

    for status, body in run(lost()):
        assert (status, body["error"]) == (500, "BROKEN")


def test_chunks_of_a_bucket(federation, bucket):
    """They arrive in the folder that main process and workers share, and are put into the bucket by the worker."""
    spool = federation.folder / "spool"

    async def by_bucket():
        async with manned(federation, 2, blobs=bucket, spool=str(spool)) as port:
            port.held_chunks.blobs = blobs = await asyncio.to_thread(open_blobs, bucket, spool=spool)
            caller = await Caller.to(port, federation.tls)
            await caller.send(head(0) + CHUNK[:300_000])
            await until(lambda: sum(one.stat().st_size for one in spool.rglob("parts/*/*")) == 300_000)
            await caller.close()
            await until(lambda: port.chunks.uploads == 0)
            kept = await asyncio.to_thread(blobs.arrived, "berlin", DIGEST)
            answer = told(await asked(port, federation.tls, path(offset=kept), "PUT", CHUNK[kept:]))
            port.held_chunks.messages.add(("berlin", DIGEST))
            return kept, answer, await asked(port, federation.tls, f"/v1/chunks/{DIGEST}"), port.counts["accepted"]

    kept, answer, read, accepted = run(by_bucket())
    assert kept == 300_000
    assert answer == (200, {"offset": len(CHUNK), "done": True})
    assert read == (200, CHUNK)
    assert accepted == 0


class Spy(RealFiles):
    """Notes which folders are synced."""

    def __init__(self):
        self.synced = []

    def sync_folder(self, folder):
        self.synced.append(folder)
        super().sync_folder(folder)


def test_what_a_worker_has_finished_is_durable_once_the_main_process_has_synced(federation):
    """An update is acknowledged after ``sync``: the folder that a worker renamed a chunk in must be in it."""
    spy = Spy()

    async def finished():
        async with manned(federation, 1) as port:
            port.held_chunks.blobs = blobs = FolderBlobs(federation.folder / "blobs", files=spy)
            spy.synced.clear()
            blobs.sync()
            before = list(spy.synced)
            status, _ = await asked(port, federation.tls, path(), "PUT", CHUNK)
            blobs.sync()
            return before, status, spy.synced

    before, status, after = run(finished())
    assert (before, status) == ([], 200)
    assert after == [federation.folder / "blobs" / "blobs" / DIGEST[:2]]
