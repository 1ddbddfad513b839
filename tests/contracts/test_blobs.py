"""What every Blobs promises, tried with each class found in ``insitu.store``."""

import hashlib
import importlib
import inspect
import os
import pkgutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import insitu.store
from insitu.core.errors import BlobError
from insitu.core.federation import Blobs
from insitu.store.blobs.folder import FolderBlobs

VERBS = [name for name in vars(Blobs) if not name.startswith("_")]
DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()


def blob_classes():
    for name in pkgutil.walk_packages(insitu.store.__path__, "insitu.store."):
        module = importlib.import_module(name.name)
        for _, one in inspect.getmembers(module, inspect.isclass):
            if one.__module__ == module.__name__ and all(hasattr(one, verb) for verb in VERBS):
                yield one


@pytest.fixture(params=blob_classes(), ids=lambda one: one.__name__)
def open_one(request, tmp_path):
    """The same blobs, for the next process as it were, each time it is called."""
    if request.param.__name__ == "FolderBlobs":
        return lambda: request.param(tmp_path / "new" / "blobs")
    bucket = request.getfixturevalue("bucket")
    return lambda: request.param(bucket, tmp_path / "new" / "spool")


@pytest.fixture
def blobs(open_one):
    return open_one()


def sent(blobs, data, owner="north", step=1000):
    """All of ``data`` as a part of ``owner``'s, finished; its digest."""
    digest = hashlib.sha256(data).hexdigest()
    part = blobs.part(owner, digest, len(data))
    for at in range(part.offset, len(data), step):
        part.write(data[at : at + step])
    part.finish()
    return digest


def test_classes_are_found():
    assert {one.__name__ for one in blob_classes()} == {"FolderBlobs", "S3Blobs"}


@pytest.mark.parametrize("data", [DATA, b"", b"x"])
def test_what_is_put_is_there_by_its_digest(blobs, open_one, data):
    digest = blobs.put(memoryview(data))
    assert digest == hashlib.sha256(data).hexdigest()
    assert blobs.put(data) == digest
    for seen in (blobs, open_one()):
        assert seen.length(digest) == len(data)
        assert seen.read(digest) == data
        assert seen.read(digest, 1) == data[1:]
        assert seen.read(digest, 100, 7) == data[100:107]
        assert seen.read(digest, len(data) + 5) == b""
        assert seen.read(digest, 0, 10**9) == data


def test_what_is_not_there_is_said(blobs):
    assert blobs.length(DIGEST) is None
    assert blobs.arrived("north", DIGEST) == 0
    with pytest.raises(BlobError, match=f"no blob {DIGEST}"):
        blobs.read(DIGEST)
    blobs.remove([DIGEST])


WRONG = ["", "../" * 10 + "etc/passwd", "/etc/passwd", DIGEST.upper(), DIGEST[:-1], DIGEST + "0", DIGEST + "\n"]
WRONG += [DIGEST[:-1] + "٣", DIGEST[:-1] + "\0", "a" * 4096, DIGEST[:-3] + "/..", None, 7]


@pytest.mark.parametrize("bad", WRONG, ids=repr)
def test_only_a_digest_names_a_blob(blobs, bad):
    tries = [lambda: blobs.length(bad), lambda: blobs.read(bad), lambda: blobs.part("north", bad, 1)]
    tries += [lambda: blobs.arrived("north", bad), lambda: blobs.remove([bad]), lambda: blobs.shown(bad)]
    for one in tries:
        with pytest.raises(BlobError, match="is no digest"):
            one()


@pytest.mark.parametrize("owner", ["../../../etc", "/", "a\0b", "\ud800", "x" * 5000, "", "CON", "норд"])
def test_any_owner_will_do_and_sees_its_own_parts_alone(blobs, owner, tmp_path):
    part = blobs.part(owner, DIGEST, len(DATA))
    part.write(DATA[:50])
    part.suspend()
    assert blobs.arrived(owner, DIGEST) == 50
    assert blobs.arrived("another", DIGEST) == 0
    outside = [path for path in tmp_path.rglob("*") if (tmp_path / "new") not in (path, *path.parents)]
    assert outside == []


def test_a_part_is_seen_when_it_is_whole_and_goes_on_where_it_was(blobs, open_one):
    part = blobs.part("north", DIGEST, len(DATA))
    part.write(bytearray(DATA[:300]))
    assert part.offset == 300
    with pytest.raises(BlobError, match="300 bytes of 10240 are there"):
        part.finish()
    part.suspend()
    assert blobs.length(DIGEST) is None
    again = open_one()
    assert again.arrived("north", DIGEST) == 300
    part = again.part("north", DIGEST, len(DATA))
    assert part.offset == 300
    part.write(memoryview(DATA)[300:])
    part.finish()
    again.sync()
    for seen in (again, open_one()):
        assert seen.read(DIGEST) == DATA
        assert seen.arrived("north", DIGEST) == 0


def test_more_than_declared_is_refused_at_the_first_byte(blobs):
    part = blobs.part("north", DIGEST, 10)
    part.write(DATA[:10])
    with pytest.raises(BlobError, match="11 bytes, and 10 were declared"):
        part.write(b"x")
    assert part.offset == 10
    part.suspend()


def test_other_bytes_than_the_digest_says_are_thrown_away(blobs):
    part = blobs.part("north", DIGEST, len(DATA))
    part.write(DATA[:-1] + b"x")
    with pytest.raises(BlobError, match="send it anew"):
        part.finish()
    assert blobs.length(DIGEST) is None
    assert blobs.arrived("north", DIGEST) == 0
    assert sent(blobs, DATA) == DIGEST
    assert blobs.read(DIGEST) == DATA


def test_a_part_that_was_abandoned_leaves_nothing(blobs):
    part = blobs.part("north", DIGEST, len(DATA))
    part.write(DATA[:300])
    part.abandon()
    part.abandon()
    assert blobs.arrived("north", DIGEST) == 0
    assert blobs.part("north", DIGEST, len(DATA)).offset == 0


def test_a_part_arrives_once_at_a_time_and_not_after_its_end(blobs):
    part = blobs.part("north", DIGEST, len(DATA))
    other = blobs.part("south", DIGEST, len(DATA))
    with pytest.raises(BlobError, match="arriving from 'north' already"):
        blobs.part("north", DIGEST, len(DATA))
    part.write(DATA[:9])
    part.suspend()
    with pytest.raises(BlobError, match="has ended"):
        part.write(DATA[9:])
    now = blobs.part("north", DIGEST, len(DATA))
    part.suspend()
    part.abandon()
    with pytest.raises(BlobError, match="arriving from 'north' already"):
        blobs.part("north", DIGEST, len(DATA))
    for one in (now, other):
        one.write(DATA[one.offset :])
        one.finish()
    assert blobs.read(DIGEST) == DATA


def test_a_part_longer_than_is_declared_now_starts_afresh(blobs):
    part = blobs.part("north", DIGEST, len(DATA))
    part.write(DATA[:300])
    part.suspend()
    part = blobs.part("north", DIGEST, 299)
    assert part.offset == 0
    part.abandon()


def test_a_blob_that_is_there_already_must_be_sent_all_the_same(blobs):
    blobs.put(DATA)
    part = blobs.part("north", DIGEST, len(DATA))
    assert part.offset == 0
    part.write(DATA)
    part.finish()
    assert blobs.read(DIGEST) == DATA


def test_sweeping_keeps_what_is_named_young_or_arriving(blobs, open_one):
    kept, gone, young = (blobs.put(bytes([i]) * 10) for i in range(3))
    old = blobs.part("north", DIGEST, len(DATA))
    old.write(DATA[:9])
    old.suspend()
    arriving = blobs.part("south", DIGEST, len(DATA))
    arriving.write(DATA[:9])
    assert blobs.sweep([kept, gone, young], 3600.0) == 0
    assert blobs.sweep([kept, young], 0.0) == 2
    assert [blobs.length(one) for one in (kept, gone, young)] == [10, None, 10]
    assert blobs.arrived("north", DIGEST) == 0
    arriving.write(DATA[9:])
    arriving.finish()
    assert open_one().read(DIGEST) == DATA
    blobs.remove([kept, DIGEST])
    assert [blobs.length(one) for one in (kept, young, DIGEST)] == [None, 10, None]


def test_what_another_process_has_finished_is_there_and_can_be_synced(blobs, open_one):
    """One takes the bytes, another one answers for them; what ``sync`` is worth is in tests/store."""
    other = open_one()
    digest = sent(other, DATA)
    blobs.shown(digest)
    blobs.shown(digest)
    blobs.sync()
    blobs.sync()
    assert (blobs.length(digest), blobs.read(digest)) == (len(DATA), DATA)


def test_many_at_once(blobs):
    datas = [bytes([i]) * (1000 + i) for i in range(20)]

    def bring(i):
        digest = sent(blobs, datas[i // 2], owner=f"site-{i}", step=100)
        blobs.put(datas[i // 2])
        blobs.sync()
        return blobs.read(digest) == datas[i // 2]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(bring, range(40)))


@pytest.fixture(scope="module")
def spool(tmp_path_factory):
    return tmp_path_factory.mktemp("blobs")


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=3000),
    cuts=st.lists(st.tuples(st.integers(1, 900), st.sampled_from(["on", "suspend", "die"])), max_size=12),
)
def test_any_split_of_writes_and_ends_gives_the_same_blob(spool, data, cuts):
    """``die``: the process ends without a word, and the next one goes on with what was synced."""
    blobs = FolderBlobs(spool)
    digest = hashlib.sha256(data).hexdigest()
    part, synced = blobs.part("north", digest, len(data)), 0
    for size, then in cuts:
        part.write(data[part.offset : part.offset + size])
        if then == "on":
            continue
        if then == "suspend":
            part.suspend()
            synced = max(synced, part.offset)
        else:
            if part._handle is not None:
                os.close(part._handle)  # as the system does
            blobs = FolderBlobs(spool)
        assert blobs.arrived("north", digest) == synced
        part = blobs.part("north", digest, len(data))
        assert part.offset == synced
    part.write(data[part.offset :])
    part.finish()
    assert FolderBlobs(spool).read(digest) == data
    blobs.remove([digest])
