"""What a site keeps in its folder: chunks, memories, finished updates; whole, or not there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from random import Random

import numpy as np
import pytest

from insitu.core import tree
from insitu.core.errors import Refusal
from insitu.engines.https.http import Reply
from insitu.engines.https.site.cache import Cache
from insitu.engines.https.site.disk import Folder
from insitu.engines.https.site.fetch import Fetcher
from insitu.engines.https.site.memory import SiteMemories
from insitu.engines.https.site.outbox import Outbox
from insitu.engines.https.site.patience import Patience
from insitu.engines.https.wire.manifest import checked
from insitu.engines.https.wire.packing import pack, unpack

TASK, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def disk(tmp_path):
    return Folder(tmp_path / "state")


def chunk(text: bytes) -> tuple[str, bytes]:
    return hashlib.sha256(text).hexdigest(), text


def test_files_are_private_and_nothing_else_is_left(disk):
    disk.write(b"one", "folder", "file")
    disk.write(b"two", "folder", "file")
    assert disk.read("folder", "file") == b"two"
    assert disk.list("folder") == {"file": 3}
    assert os.listdir(disk.root / "folder") == ["file"]
    assert (disk.root / "folder" / "file").stat().st_mode & 0o077 == 0
    disk.remove("folder")
    disk.remove("folder")
    assert disk.list("folder") == {}
    with pytest.raises(FileNotFoundError):
        disk.read("folder", "file")


def test_a_new_folder_is_durable_in_the_one_that_it_lies_in(disk, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    disk.write(b"one", "outer", "inner", "file")
    root = str(disk.root)
    assert synced[:3] == [os.path.dirname(root), root, f"{root}/outer"]
    assert synced[-1] == f"{root}/outer/inner"
    synced.clear()
    disk.write(b"two", "outer", "inner", "file")
    assert len(synced) == 2  # the file and its folder


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "", "a\\b", "a\0b"])
def test_a_name_that_leads_elsewhere_is_none(disk, name):
    for act in (lambda: disk.read(name), lambda: disk.write(b"", name), lambda: disk.remove("x", name)):
        with pytest.raises(ValueError, match="no file's name"):
            act()


def test_a_write_that_fails_leaves_what_was_there(disk, monkeypatch):
    disk.write(b"old", "file")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        disk.write(b"new", "file")
    assert disk.read("file") == b"old"
    assert os.listdir(disk.root) == ["file"]


def test_the_cache_forgets_what_was_used_longest_ago_but_not_what_is_needed(disk):
    cache = Cache(disk, 10)
    chunks = [chunk(bytes([i]) * 4) for i in range(4)]
    for digest, data in chunks[:2]:
        cache.put(digest, data)
    assert cache.get(chunks[0][0]) == chunks[0][1]  # used now, so the other one goes
    cache.put(*chunks[2])
    assert [cache.has(digest) for digest, _ in chunks] == [True, False, True, False]
    needed = {digest for digest, _ in chunks}
    for digest, data in chunks:
        cache.put(digest, data, needed)
    assert all(cache.has(digest) for digest in needed)  # larger than the limit, as a model may be
    again = Cache(disk, 10)
    assert all(again.get(digest) == data for digest, data in chunks)


def test_a_damaged_chunk_is_as_good_as_none(disk):
    cache = Cache(disk, 100)
    digest, data = chunk(b"hello")
    cache.put(digest, data)
    disk.write(b"hullo", "cache", digest)
    assert cache.get(digest) is None
    assert not cache.has(digest)
    cache.put(digest, data)
    assert cache.get(digest) == data


def memory(x: float) -> dict:
    return {"algorithm": {"c": np.full(3, x)}}


def test_a_memory_is_the_one_that_the_task_names(disk):
    memories = SiteMemories(disk)
    assert memories.open("run", None, TASK) is None
    memories.keep("run", TASK, memory(1))
    memories.keep("run", OTHER, memory(2))  # of an attempt that may count, or not
    found = memories.open("run", TASK, "c" * 32)
    np.testing.assert_array_equal(found["algorithm"]["c"], np.full(3, 1.0))
    with pytest.raises(Refusal) as refused:  # the other one was no longer wanted
        memories.open("run", OTHER, "c" * 32)
    assert refused.value.code == "MEMORY_LOST"
    assert memories.open("another/../run", None, TASK) is None


def test_the_memory_of_the_task_at_work_stays(disk):
    memories = SiteMemories(disk)
    memories.keep("run", TASK, memory(1))
    assert memories.open("run", None, TASK) is None  # the same task once more, after a crash
    assert memories.open("run", TASK, OTHER) is not None


def test_a_damaged_memory_is_lost(disk):
    memories = SiteMemories(disk)
    memories.keep("run", TASK, memory(1))
    (folder,) = disk.list("memory")
    data = bytearray(disk.read("memory", folder, TASK))
    data[-40] ^= 1
    disk.write(bytes(data), "memory", folder, TASK)
    with pytest.raises(Refusal, match="damaged") as refused:
        memories.open("run", TASK, OTHER)
    assert refused.value.code == "MEMORY_LOST"


MORE = {"task": TASK, "base": "1" * 64, "weight": {"shared": 2.0}, "metrics": {}, "keeps": True}


def test_an_update_is_there_once_its_manifest_is(disk):
    box = Outbox(disk)
    value = {"shared": {"w": np.arange(5.0)}}
    assert box.get(TASK) is None
    told = box.put(TASK, value, MORE)
    found = Outbox(disk).get(TASK)
    assert found == told
    back = unpack(checked(found, 2**20, "update").plain(), lambda digest: box.chunk(TASK, digest))
    np.testing.assert_array_equal(tree.flatten(back), np.arange(5.0))
    disk.remove("outbox", TASK, told["chunks"][0][0])
    assert box.get(TASK) is None
    box.put(OTHER, value, {**MORE, "task": OTHER})
    box.keep_only(OTHER)
    assert list(disk.list("outbox")) == [OTHER]
    box.remove(OTHER)
    assert box.get(OTHER) is None


def test_a_crash_before_the_manifest_leaves_no_update(disk, monkeypatch):
    from insitu.engines.https.site import outbox as module

    class Died(BaseException):
        pass

    def die(name):
        if name == "site.outbox.before":
            raise Died

    monkeypatch.setattr(module.failpoints, "hit", die)
    box = Outbox(disk)
    with pytest.raises(Died):
        box.put(TASK, {"w": np.zeros(3)}, MORE)
    monkeypatch.undo()
    assert Outbox(disk).get(TASK) is None
    assert disk.list("outbox") == {TASK: 0}


def test_evaluations_forget_nothing(disk):
    memories = SiteMemories(disk)
    memories.keep("run", TASK, memory(1))
    memories.keep("run", OTHER, memory(2))
    assert memories.open("run", TASK, "c" * 32, forget=False) is not None
    assert memories.open("run", None, "c" * 32, forget=False) is None
    assert memories.open("run", OTHER, "c" * 32) is not None


def test_memories_of_so_many_runs_are_kept(disk, monkeypatch):
    from insitu.engines.https.site import memory as module

    monkeypatch.setattr(module, "RUNS", 3)
    memories = SiteMemories(disk)
    for run in range(6):
        memories.keep(f"run {run}", TASK, memory(run))
        folder = disk.root / "memory" / module._folder(f"run {run}")
        os.utime(folder, (run, run))
    assert len(disk.list("memory")) <= 4
    assert memories.open("run 5", TASK, OTHER) is not None
    assert memories.open("run 3", TASK, OTHER) is not None
    with pytest.raises(Refusal, match="not there"):
        memories.open("run 0", TASK, OTHER)


def test_an_update_that_was_damaged_is_made_anew(disk):
    box = Outbox(disk)
    told = box.put(TASK, {"w": np.arange(5.0)}, MORE)
    digest, length = told["chunks"][0]
    disk.write(bytes(length), "outbox", TASK, digest)
    assert box.get(TASK) is None
    box.put(TASK, {"w": np.arange(5.0)}, MORE)
    assert box.get(TASK) == told
    for text in (b"{", b"[]", b"{}", b"\xff", json.dumps({**told, "task": OTHER}).encode()):
        disk.write(text, "outbox", TASK, "manifest")
        assert box.get(TASK) is None


def test_what_was_left_half_written_is_removed(disk):
    disk.write(b"kept", "memory", "run", TASK)
    (disk.root / "memory" / "run" / f".{TASK}.0011aabb").write_bytes(b"half")
    (disk.root / ".aside").write_bytes(b"half")
    disk.tidy()
    assert [path.name for path in disk.root.rglob("*") if path.is_file()] == [TASK]


def fetcher(disk, lost):
    """One whose cache loses chunks between their arrival and their use, so many times; and what was asked for."""
    asked = []
    value = {"w": np.arange(5.0)}
    stored = {}

    def keep(data):
        digest = hashlib.sha256(data).hexdigest()
        stored[digest] = data
        return digest

    told = pack(value, "message", keep)

    class Network:
        async def request(self, method, path, **_):
            asked.append(path)
            data = stored[path.rpartition("/")[2]]

            async def stream():
                yield data[:7]
                yield data[7:]

            return Reply(200, {}, b"", stream())

    async def compute(function):
        if lost:
            lost.pop()
            for digest in stored:
                disk.write(b"?", "cache", digest)
        return function()

    cache = Cache(disk, 2**20)
    made = Fetcher(Network(), cache, Patience(Random(1), print), compute)
    return asyncio.run(made.tree(checked(told, 2**20, "message"))), asked


def test_a_chunk_that_the_disk_has_lost_is_fetched_again(disk):
    found, asked = fetcher(disk, [1, 1])
    np.testing.assert_array_equal(found["w"], np.arange(5.0))
    assert len(asked) == 3
    with pytest.raises(OSError, match="get lost"):
        fetcher(disk, [1] * 10)
