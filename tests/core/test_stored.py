"""Updates that lie in chunks on a disk: folded piece by piece, with the bits that adding them one by one has."""

from __future__ import annotations

import hashlib
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.core import stored, tree, wire
from insitu.core.errors import Refusal, UpdateError, WireError
from insitu.core.mean import Mean
from insitu.core.stored import Stored
from insitu.core.types import Context, Update
from insitu.engines.https.wire import packing
from insitu.engines.https.wire.packing import Stream, left_there, pack

CONTEXT = Context(1, 10)


class Shelf:
    """Chunks by their digest, and how much of them was read at once."""

    def __init__(self) -> None:
        self.chunks: dict[str, bytes] = {}
        self.largest = 0

    def keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.chunks[digest] = bytes(data)
        return digest

    def fill(self, digest: str, offset: int, room: memoryview) -> int:
        self.largest = max(self.largest, len(room))
        some = self.chunks[digest][offset : offset + len(room)]
        room[: len(some)] = some
        return len(some)


def left(value, shelf: Shelf):
    return left_there(pack(value, "update", shelf.keep), shelf.fill)


def one_by_one(accumulator, block):
    """What every other engine does."""
    own = Mean().zero()
    for update, client in block:
        own = Mean().add(own, update, client)
    return Mean().merge(accumulator, own)


def bits(accumulator):
    total = Mean().finish(accumulator, CONTEXT)
    return wire.digest([dict(total.value), total.weight, total.clients])


DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "int32"]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (700, 3)]


def array(kind: str, dtype: str, shape, random) -> object:
    numbers = random.normal(size=shape) * 10.0 ** random.integers(-6, 3 if dtype == "float16" else 6)
    if kind == "torch":
        return torch.as_tensor(numbers).to(getattr(torch, dtype))
    return np.asarray(numbers).astype("float32" if dtype == "bfloat16" else dtype)


@st.composite
def cohorts(draw):
    kind = draw(st.sampled_from(["numpy", "torch"]))
    leaves = draw(st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES)), min_size=1, max_size=4))
    blocks = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return kind, leaves, blocks, draw(st.integers(0, 2**31)), draw(st.integers(16, 3000)), draw(st.integers(16, 3000))


@given(cohorts())
@settings(max_examples=60, deadline=None)
def test_blocks_have_the_bits_of_adding_and_merging(cohort):
    kind, leaves, blocks, seed, piece, chunk = cohort
    random, shelf = np.random.default_rng(seed), Shelf()
    here, there = Mean().zero(), Mean().zero()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "PIECE", piece)
        patch.setattr(packing, "CHUNK", chunk)
        for size in blocks:
            block = []
            for i in range(size):
                shared = {f"x{j}": array(kind, *leaf, random) for j, leaf in enumerate(leaves)}
                value = {"shared": {"deep": shared}, "buffers": {"n": array(kind, "int64", (), random)}}
                if i == 1:
                    del value["buffers"]  # whoever tells a part less counts in the others
                weights = {part: float(random.integers(1, 99)) / 3 for part in value}
                block.append((Update(value, weights), f"c{i}"))
            here = one_by_one(here, block)
            lying = [(Update(left(u.value, shelf), u.weight), c) for u, c in block]
            there, refused = Mean().add_stored(there, lying)
            assert not refused
    assert bits(there) == bits(here)


def test_memory_is_a_piece_of_each_and_the_sum():
    random, shelf = np.random.default_rng(0), Shelf()
    values = [{"shared": {"w": random.normal(size=2_000_000).astype("float32")}} for _ in range(3)]
    block = [(Update(left(value, shelf), {"shared": 1.0}), str(i)) for i, value in enumerate(values)]
    accumulator, _ = Mean().add_stored(Mean().zero(), block)
    assert shelf.largest == stored.PIECE
    total = Mean().finish(accumulator, CONTEXT)
    assert np.allclose(total.value["shared"]["w"], np.mean([v["shared"]["w"] for v in values], axis=0), atol=1e-6)
    assert total.spare
    assert total.value["shared"]["w"].base is accumulator["value"]["shared"]["w"].base  # divided where it lay


def test_arrays_that_somebody_else_may_have_are_left_alone():
    own = np.ones(4, np.float32)
    block = Mean().merge(Mean().zero(), {"value": {"a": {"x": own}}, "weight": {"a": 2.0}, "clients": 1})
    total = Mean().finish(block, CONTEXT)
    assert not total.spare
    assert own.tolist() == [1.0] * 4
    shelf = Shelf()
    mixed, _ = Mean().add_stored(Mean().zero(), [(Update(left({"b": {"x": own}}, shelf), {"b": 1.0}), "c")])
    mixed = Mean().merge(mixed, {"value": {"a": {"x": own}}, "weight": {"a": 2.0}, "clients": 1})
    assert not Mean().finish(mixed, CONTEXT).spare
    assert own.tolist() == [1.0] * 4


def test_who_tells_other_shapes_is_refused_before_anything_is_added():
    shelf = Shelf()

    def told(n: int, part: str = "shared"):
        return Update(left({"first": {"w": np.ones(2)}, part: {"w": np.ones(n)}}, shelf), {"first": 1.0, part: 1.0})

    accumulator, refused = Mean().add_stored(
        Mean().zero(), [(told(3), "a"), (told(4), "b"), (told(3), "c"), (told(3, "other"), "d")]
    )
    assert list(refused) == ["b"]
    assert "'b'" in str(refused["b"])
    assert "[4]" in str(refused["b"])
    assert accumulator["clients"] == 3
    assert accumulator["weight"] == {"first": 3.0, "shared": 2.0, "other": 1.0}
    assert accumulator["value"]["first"]["w"].tolist() == [3.0, 3.0]
    with pytest.raises(UpdateError, match=r"a block.*\[3\]"):
        Mean().add_stored(accumulator, [(told(4), "e")])


def test_the_same_refusal_leaves_the_other_way_of_adding_unchanged():
    accumulator = Mean().add(
        Mean().zero(), Update({"a": {"x": np.ones(2)}, "b": {"x": np.ones(3)}}, {"a": 1, "b": 1}), "c"
    )
    with pytest.raises(UpdateError):
        Mean().add(accumulator, Update({"a": {"x": np.ones(2)}, "b": {"x": np.ones(4)}}, {"a": 1, "b": 1}), "d")
    assert accumulator["value"]["a"]["x"].tolist() == [1.0, 1.0]


def test_whoever_changes_how_a_mean_adds_is_given_whole_updates():
    class Own(Mean):
        def add(self, accumulator, update, client):
            return super().add(accumulator, update, client)

    assert Mean().adds_stored()
    assert not Own().adds_stored()


def test_leaves_weigh_what_they_are():
    shelf = Shelf()
    value = {"shared": {"w": np.zeros((3, 4), "float32"), "b": torch.zeros(5, dtype=torch.bfloat16)}}
    lying = left(value, shelf)
    assert tree.nbytes(lying) == tree.nbytes(value) == 58
    assert lying["shared"]["w"].shape == (3, 4)


def test_a_stream_reads_from_anywhere_and_says_where_it_ends():
    shelf = Shelf()
    whole = bytes(range(100))
    chunks = [[shelf.keep(whole[at : at + 30]), len(whole[at : at + 30])] for at in range(0, 100, 30)]
    stream = Stream(chunks, shelf.fill)
    for first, count in ((0, 10), (10, 45), (3, 1), (99, 1), (50, 0)):
        assert bytes(stream.read(first, count)) == whole[first : first + count]
    with pytest.raises(WireError, match="end at byte 100"):
        stream.read(95, 6)
    shelf.chunks[chunks[1][0]] = b"short"
    with pytest.raises(WireError, match="not 30"):
        Stream(chunks, shelf.fill).read(25, 20)


def test_many_small_arrays_are_read_a_portion_at_a_time():
    shelf, reads = Shelf(), []

    def fill(digest: str, offset: int, room: memoryview) -> int:
        reads.append(len(room))
        return shelf.fill(digest, offset, room)

    value = {"shared": {f"x{i}": np.full(3, float(i)) for i in range(5000)}}
    lying = left_there(pack(value, "update", shelf.keep), fill)
    accumulator, _ = Mean().add_stored(Mean().zero(), [(Update(lying, {"shared": 1.0}), "c")])
    assert accumulator["value"]["shared"]["x4999"].tolist() == [4999.0] * 3
    assert len(reads) < 30
    assert bits(accumulator) == bits(one_by_one(Mean().zero(), [(Update(value, {"shared": 1.0}), "c")]))


def test_a_table_that_is_not_the_manifests_is_refused():
    shelf = Shelf()
    manifest = pack({"shared": {"w": np.zeros(3)}}, "update", shelf.keep)
    manifest["tensors"] = [{**manifest["tensors"][0], "dtype": "float32"}]
    with pytest.raises(Refusal, match="table of tensors"):
        left_there(manifest, shelf.fill)


def test_memory_does_not_grow_with_the_block():
    """However many clients: a piece is read when the one before it is in the sum."""
    held, most = [0], [0]

    def read(first: int, count: int) -> memoryview:
        array = np.zeros(count, np.uint8)
        held[0] += count
        most[0] = max(most[0], held[0])
        weakref.finalize(array, lambda: held.__setitem__(0, held[0] - count))
        return array.data

    for clients in (4, 80):
        leaf = Stored((2**19,), "float32", "numpy", 0, read)
        block = [(Update({"shared": {"w": leaf}}, {"shared": 1.0}), str(i)) for i in range(clients)]
        Mean().add_stored(Mean().zero(), block)
    assert held == [0]
    assert most[0] <= 2 * stored.PIECE


def test_clients_that_tell_another_dtype_are_added_as_any_other_engine_does():
    random, shelf = np.random.default_rng(1), Shelf()
    arrays = [random.normal(size=300_000).astype(dtype) for dtype in ("float32", "float64", "float32")]
    block = [(Update({"own": {"x": x}}, {"own": 1.0 + i}), str(i)) for i, x in enumerate(arrays)]
    lying = [(Update(left(update.value, shelf), update.weight), client) for update, client in block]
    there, refused = Mean().add_stored(Mean().zero(), lying)
    assert not refused
    assert bits(there) == bits(one_by_one(Mean().zero(), block))


def test_chunks_that_are_read_as_a_whole_are_read_once(monkeypatch):
    """What a short read takes along ends with its chunk: the next one would be fetched for it, and this one again."""
    monkeypatch.setattr(packing, "AHEAD", 20)
    shelf, asked = Shelf(), []
    whole = bytes(range(250))
    chunks = [[shelf.keep(whole[at : at + 100]), len(whole[at : at + 100])] for at in range(0, 250, 100)]

    def read(digest: str) -> bytes:
        asked.append(digest)
        return shelf.chunks[digest]

    stream = Stream(chunks, packing.whole_chunks(read))
    for first, count in ((0, 4), (4, 86), (90, 4), (94, 100), (194, 2), (196, 8), (204, 46)):
        assert bytes(stream.read(first, count)) == whole[first : first + count]
    assert asked == [digest for digest, _ in chunks]
