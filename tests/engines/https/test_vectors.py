"""The bytes of protocol 1, held by a file, and read here by a reader that shares no code with insitu's."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from insitu.core import wire
from insitu.engines.https.wire.manifest import checked
from insitu.engines.https.wire.packing import pack, unpack

FOLDER = Path(__file__).parent / "vectors"
HELD = json.loads((FOLDER / "version_1.json").read_text(encoding="utf-8"))
NAMES = [case["name"] for case in HELD["trees"]]


def _maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vectors_make", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


maker = _maker()


def case(name: str) -> dict[str, Any]:
    return next(one for one in HELD["trees"] if one["name"] == name)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def test_what_is_sent_today_is_what_the_file_holds() -> None:
    assert maker.vectors() == HELD


@pytest.mark.parametrize("name", NAMES)
def test_the_digests_of_a_manifest_are_what_the_page_says(name: str) -> None:
    held = case(name)
    frame, manifest = bytes.fromhex(held["frame"]), held["manifest"]
    (chunk,) = manifest["chunks"]
    assert chunk == [hashlib.sha256(frame).hexdigest(), len(frame)]
    assert manifest["length"] == len(frame)
    assert manifest["digest"] == hashlib.sha256(hashlib.sha256(frame).digest()).hexdigest()
    assert held["id"] == hashlib.sha256(canonical(manifest)).hexdigest()
    assert checked(manifest, 10**6, "message").id == held["id"]


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_is_read_as_the_page_says(name: str) -> None:
    held = case(name)
    assert same(read(bytes.fromhex(held["frame"]), held["manifest"]["tensors"]), maker.TREES[name])


@pytest.mark.parametrize("name", NAMES)
def test_insitu_reads_the_file_s_frames(name: str) -> None:
    held = case(name)
    tree = unpack(held["manifest"], lambda digest: bytes.fromhex(held["frame"]))
    assert same(tree, maker.TREES[name])
    assert wire.digest(tree) == held["digest of the tree"]


def test_a_large_tree_is_cut_every_four_mebibytes() -> None:
    whole = bytearray()
    pack(maker.large(), "message", lambda data: whole.extend(data) or maker.sha(data))
    manifest, step = HELD["many chunks"]["manifest"], 4 * 2**20
    pieces = [bytes(whole[i : i + step]) for i in range(0, len(whole), step)]
    assert manifest["chunks"] == [[hashlib.sha256(piece).hexdigest(), len(piece)] for piece in pieces]
    assert len(pieces) == 3
    together = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    assert manifest["digest"] == hashlib.sha256(together).hexdigest()


def test_a_task_s_name_follows_from_what_is_asked() -> None:
    task = HELD["task"]
    assert task["id"] == hashlib.sha256(canonical(task["of"])).hexdigest()[:32]


def test_an_update_s_id_covers_weight_and_task() -> None:
    held = HELD["update"]
    assert held["id"] == hashlib.sha256(canonical(held["manifest"])).hexdigest()
    other = {**held["manifest"], "weight": {"params": 32.0}}
    assert checked(other, 2**20, "update").id != held["id"]


# ------------------------------------------------------------ a reader of its own


def read(frame: bytes, table: list[dict[str, Any]]) -> Any:
    """A frame by the page's words: magic, version, length of the header, header, numbers."""
    magic, version, length = frame[:8], *struct.unpack("<IQ", frame[8:20])
    assert (magic, version) == (b"\x8cinsitu\n", 1)
    header = json.loads(frame[20 : 20 + length])
    assert header["tensors"] == table
    numbers = frame[20 + length :]
    arrays = [
        np.frombuffer(numbers, np.dtype(t["dtype"]).newbyteorder("<"), int(np.prod(t["shape"])), t["offset"]).reshape(
            t["shape"]
        )
        for t in table
    ]
    assert len(numbers) == sum(t["nbytes"] for t in table)
    return node(header["tree"], arrays)


def node(told: Any, arrays: list[Any]) -> Any:
    if not isinstance(told, dict):
        return told
    ((kind, inner),) = told.items()
    if kind == "dict":
        return {key: node(value, arrays) for key, value in inner.items()}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(node(value, arrays) for value in inner)
    return arrays[inner] if kind == "tensor" else int(inner, 16)


def same(a: Any, b: Any) -> bool:
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b) and a.shape == b.shape
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)
