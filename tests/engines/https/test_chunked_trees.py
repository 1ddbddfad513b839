"""Trees in chunks: back as they were; and manifests of strangers, which are refused by name of what is wrong."""

from __future__ import annotations

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.core import wire
from insitu.core.errors import Refusal
from insitu.engines.https.wire import manifest, packing


class Chunks(dict):
    """Chunks by their digests."""

    def keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self[digest] = bytes(data)
        return digest


TREE = {
    "shared": {"w": np.arange(12.0).reshape(3, 4), "b": np.zeros(3, np.float32), "empty": np.empty((0, 2))},
    "n": 3, "text": ["a", None, True], "t": torch.arange(5, dtype=torch.bfloat16), "s": np.float64(0.5),
}  # fmt: skip
MORE = {"task": "0" * 32, "base": "1" * 64, "weight": {"shared": 3.0}, "metrics": {"loss": 1.5}, "keeps": False}


def packed(tree=TREE, **more):
    chunks = Chunks()
    told = packing.pack(tree, "update", chunks.keep)
    return json.loads(json.dumps({**told, **MORE, **more})), chunks


def test_a_tree_comes_back():
    told, chunks = packed()
    found = packing.unpack(manifest.checked(told, 2**20, "update").plain(), chunks.__getitem__)
    assert wire.digest(found) == wire.digest(TREE)
    assert list(found) == list(TREE)
    assert isinstance(found["t"], torch.Tensor)
    found["shared"]["w"] += 1  # its own memory, to be written


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(50, 400))
def test_chunks_of_any_size_are_the_frame_without_its_digest(sizes, chunk):
    tree = {str(i): np.random.default_rng(i).normal(size=n) for i, n in enumerate(sizes)}
    before, packing.CHUNK = packing.CHUNK, chunk
    try:
        chunks = Chunks()
        told = packing.pack(tree, "message", chunks.keep)
        joined = b"".join(chunks[digest] for digest, _ in told["chunks"])
        assert joined == wire.encode(tree)[:-32]
        assert all(length == chunk for _, length in told["chunks"][:-1])
        assert wire.digest(packing.unpack(told, chunks.__getitem__)) == wire.digest(tree)
    finally:
        packing.CHUNK = before


def test_the_same_content_has_the_same_chunks():
    big = {"w": np.zeros(3 * 2**20, np.float32), "last": np.arange(3)}
    other = {**big, "last": np.arange(3) + 1}
    first, second = (packed(tree)[0]["chunks"] for tree in (big, other))
    assert first[:3] == second[:3]
    assert first[3] != second[3]


WRONG = [
    ("protocol", 2, "protocol"),
    ("holds", "message", "holds"),
    ("length", -1, "length"),
    ("length", True, "length"),
    ("length", "9", "length"),
    ("chunks", [], "chunks"),
    ("chunks", {}, "chunks"),
    ("digest", "0" * 64, "digest"),
    ("tensors", {}, "tensors"),
    ("tensors", [{}], "tensor 0"),
    ("task", "../../etc", "task"),
    ("base", 5, "base"),
    ("keeps", 1, "keeps"),
    ("weight", {"shared": float("inf")}, "weight.shared"),
    ("weight", {"shared": True}, "weight.shared"),
    ("weight", {"shared": "1"}, "weight.shared"),
    ("weight", [], "weight"),
    ("metrics", {"a\x1b[31m": 1.0}, "metrics"),
    ("metrics", {"a" * 4096: 1.0}, "metrics"),
    ("metrics", {str(i): 1.0 for i in range(300)}, "metrics"),
    ("metrics", {"loss": float("nan")}, "metrics.loss"),
]


@pytest.mark.parametrize(("key", "value", "named"), WRONG)
def test_a_wrong_field_is_named(key, value, named):
    told, _ = packed()
    with pytest.raises(Refusal, match=named) as refused:
        manifest.checked({**told, key: value}, 2**20, "update")
    assert refused.value.code == "BAD_MANIFEST"
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("path", ["shared", "w", "\x00"]), ("path", ["shared", "../x" * 100]), ("path", ["a"] * 65), ("path", "shared"),
        ("dtype", "object"), ("dtype", "O"), ("kind", "pickle"), ("shape", [2**50]), ("shape", [-1]), ("shape", [1.0]),
        ("shape", [1] * 33), ("nbytes", 7), ("nbytes", True), ("offset", 1), ("extra", 1),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_named(key, value):
    told, _ = packed()
    told["tensors"][0][key] = value
    with pytest.raises(Refusal, match="tensor 0") as refused:
        manifest.checked(told, 2**20, "update")
    assert refused.value.code == "BAD_MANIFEST"


def test_a_tensor_that_stands_twice_is_refused():
    told, _ = packed()
    twice = copy.deepcopy(told["tensors"][0])
    told["tensors"].insert(1, {**twice, "offset": twice["nbytes"]})
    with pytest.raises(Refusal, match="path of another"):
        manifest.checked(told, 2**20, "update")


def test_too_much_is_refused():
    told, _ = packed()
    with pytest.raises(Refusal, match="more than the 100") as refused:
        manifest.checked(told, 100, "update")
    assert refused.value.code == "TOO_LARGE"
    one = told["tensors"][-1]
    told["tensors"] += [one] * 100_000
    with pytest.raises(Refusal) as refused:
        manifest.checked(told, 2**20, "update")
    assert refused.value.code == "TOO_LARGE"


def test_what_a_stranger_adds_is_not_kept():
    told, _ = packed()
    assert manifest.checked({**told, "note": "x" * 1000}, 2**20, "update") == manifest.checked(told, 2**20, "update")


def test_a_table_that_is_not_the_chunks_own_is_refused():
    told, chunks = packed()
    told["tensors"][0]["shape"] = [4, 3]
    checked = manifest.checked(told, 2**20, "update")
    with pytest.raises(Refusal, match="not that of the chunks"):
        packing.unpack(checked.plain(), chunks.__getitem__)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_chunks_of_garbage_are_refused(data):
    chunks = Chunks()
    parts = [[chunks.keep(data), len(data)]] if data else []
    told = {"length": len(data), "chunks": parts, "tensors": []}
    with pytest.raises(Refusal):
        packing.unpack(told, chunks.__getitem__)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([key for key, _, _ in WRONG] + ["tensors", "chunks"]), json_values)
def test_no_value_breaks_the_check(key, value):
    told, _ = packed()
    code = ""
    try:
        manifest.checked({**told, key: value}, 2**20, "update")
    except Refusal as refused:
        code = refused.code
    assert code in ("", "BAD_MANIFEST", "TOO_LARGE")


def test_a_chunk_with_two_lengths_is_refused(monkeypatch):
    """The last chunk would be the beginning of another one: what is read of it would depend on who reads."""
    monkeypatch.setattr(packing, "CHUNK", 64)
    monkeypatch.setattr(manifest, "CHUNK", 64)
    told, _ = packed()
    assert told["length"] % 64
    told["chunks"][-1][0] = told["chunks"][0][0]
    told["digest"] = packing.whole(told["chunks"])
    with pytest.raises(Refusal, match="another length as well") as refused:
        manifest.checked(told, 2**20, "update")
    assert refused.value.code == "BAD_MANIFEST"
    same, _ = packed({"x": np.zeros(400)})
    assert len({digest for digest, _ in same["chunks"]}) < len(same["chunks"])  # a chunk may be there twice
    manifest.checked(same, 2**20, "update")
