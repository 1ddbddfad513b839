"""What a site keeps in its folder: chunks, memories, finished updates; whole, or not there."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from insitu.core import tree
from insitu.core.errors import Refusal
from insitu.engines.https.site.cache import Cache
from insitu.engines.https.site.disk import Folder
from insitu.engines.https.site.memory import SiteMemories
from insitu.engines.https.site.outbox import Outbox
from insitu.engines.https.wire.manifest import checked
from insitu.engines.https.wire.packing import unpack

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
