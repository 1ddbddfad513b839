"""Chunks are removed when nobody needs them, and never a moment too early."""

from __future__ import annotations

import threading

import pytest
from federations import MemoryBlobs
from hypothesis import given
from hypothesis import strategies as st

from insitu.engines.https.calls.shelf import Shelf

DIGESTS = "abcd"
steps = st.lists(
    st.tuples(st.sampled_from(["use", "drop", "begin", "end", "clear"]), st.sampled_from(DIGESTS)), max_size=40
)


@given(steps)
def test_what_is_used_or_coming_is_there(steps):
    blobs, uses, coming, ever = MemoryBlobs(), dict.fromkeys(DIGESTS, 0), dict.fromkeys(DIGESTS, 0), set()
    blobs.whole = dict.fromkeys(DIGESTS, b"")
    shelf = Shelf(blobs)
    for what, digest in steps:
        if what == "use":
            shelf.use([digest, digest])
            uses[digest] += 1
            blobs.whole[digest] = b""
        elif what == "drop" and uses[digest]:
            shelf.drop({digest: 7})  # a mapping of lengths is a collection of digests like any other
            uses[digest] -= 1
            ever.add(digest)
        elif what == "begin":
            assert shelf.begin(digest)
            coming[digest] += 1
            blobs.whole[digest] = b""
        elif what == "end" and coming[digest]:
            shelf.end(digest)
            coming[digest] -= 1
            ever.add(digest)
        elif what == "clear":
            shelf.clear()
            gone = {d for d in ever if not uses[d] and not coming[d]}
            assert not gone & blobs.whole.keys()
        needed = {d for d in DIGESTS if uses[d] or coming[d]}
        assert needed <= blobs.whole.keys()
        assert shelf.used() == needed


def test_what_no_call_names_is_looked_for_while_nobody_packs():
    shelf, began = Shelf(MemoryBlobs()), threading.Event()

    def pack():
        with shelf.packing():
            began.set()

    with shelf.packing(), shelf.apart() as free:
        assert not free
    with shelf.apart() as free, shelf.apart() as another:
        assert free
        assert another
        packer = threading.Thread(target=pack)
        packer.start()
        assert not began.wait(0.1)
    assert began.wait(5)
    packer.join()


def test_nothing_goes_while_a_message_is_packed_and_nothing_is_packed_while_something_goes():
    blobs, going, go_on = MemoryBlobs(), threading.Event(), threading.Event()
    blobs.whole = {"a": b"", "b": b""}
    shelf = Shelf(blobs)
    shelf.use("ab")
    shelf.drop("a")
    with shelf.packing():
        assert shelf.clear() == 0
    real = blobs.remove

    def remove(digests):
        going.set()
        go_on.wait(5)
        real(digests)

    blobs.remove = remove
    remover = threading.Thread(target=shelf.clear)
    remover.start()
    going.wait(5)
    assert not shelf.begin("a")
    assert shelf.begin("b")
    packed = threading.Event()

    def pack():
        with shelf.packing():
            packed.set()

    packer = threading.Thread(target=pack)
    packer.start()
    assert not packed.wait(0.05)
    go_on.set()
    assert packed.wait(5)
    remover.join()
    packer.join()
    assert set(blobs.whole) == {"b"}
    assert shelf.begin("a")


def test_what_could_not_be_removed_goes_another_time():
    blobs = MemoryBlobs()
    blobs.whole = {"a": b""}
    shelf = Shelf(blobs)
    shelf.use("a")
    shelf.drop("a")
    real, blobs.remove = blobs.remove, lambda digests: (_ for _ in ()).throw(OSError("busy"))
    with pytest.raises(OSError, match="busy"):
        shelf.clear()
    blobs.remove = real
    assert shelf.clear() == 1
    assert not blobs.whole
