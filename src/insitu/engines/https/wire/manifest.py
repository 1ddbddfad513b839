"""Manifests from strangers: every field looked at before anything is believed, let alone allocated."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insitu.core import bits
from insitu.core.errors import Refusal
from insitu.core.wire import MAX_DEPTH
from insitu.engines.https.wire.packing import CHUNK, PROTOCOL, whole

MAX_TENSORS = 100_000
MAX_DIMENSIONS = 32
MAX_NAME = 256
"""Characters in a key of a path, a metric's or a part's name."""
MAX_METRICS = 256
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TASK = re.compile(r"[0-9a-f]{32}")
_ENTRY = {"path", "dtype", "shape", "offset", "nbytes", "kind"}


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. ``text`` is its canonical JSON and ``id`` the SHA-256 of that; the rest as it was sent."""

    holds: str
    length: int
    chunks: tuple[tuple[str, int], ...]
    tensors: tuple[Mapping[str, Any], ...]
    digest: str
    text: str
    id: str
    task: str = ""
    base: str = ""
    weight: Mapping[str, float] | None = None
    metrics: Mapping[str, float] | None = None
    keeps: bool = False

    def plain(self) -> dict[str, Any]:
        """As :func:`~insitu.engines.https.wire.packing.unpack` takes it."""
        return {"length": self.length, "chunks": self.chunks, "tensors": list(self.tensors)}


def canonical(value: Any) -> str:
    """The one way in which a document is written: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """The SHA-256 of a document, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def is_digest(x: Any) -> bool:
    """Whether it has the form of a SHA-256: only such names are ever looked up."""
    return isinstance(x, str) and _DIGEST.fullmatch(x) is not None


def is_task(x: Any) -> bool:
    """Whether it has the form of a task's id."""
    return isinstance(x, str) and _TASK.fullmatch(x) is not None


def checked(value: Any, largest: int, holds: str) -> Manifest:
    """The manifest, if it is one that ``holds`` a message or an update of at most ``largest`` bytes.

    Raises Refusal BAD_MANIFEST, naming the field, or TOO_LARGE.
    """
    fields = _object(value, "the manifest")
    _want(fields.get("protocol") == PROTOCOL, f"protocol is {fields.get('protocol')!r:.40}, not {PROTOCOL}")
    _want(fields.get("holds") == holds, f"it holds {fields.get('holds')!r:.40}, not an {holds}")
    length = _whole(fields.get("length"), "length")
    if length > largest:
        raise Refusal("TOO_LARGE", f"{length} bytes are more than the {largest} that are taken")
    chunks = _chunks(fields.get("chunks"), length)
    tensors = _tensors(fields.get("tensors"), length)
    _want(fields.get("digest") == whole(chunks), "digest is not that of the chunks")
    known: dict[str, Any] = {
        "protocol": PROTOCOL, "holds": holds, "length": length, "chunks": [list(chunk) for chunk in chunks],
        "tensors": [dict(entry) for entry in tensors], "digest": fields["digest"],
    }  # fmt: skip
    more: dict[str, Any] = {}
    if holds == "update":
        more = _of_update(fields)
    text = canonical({**known, **more})  # of the fields that we know: no stranger's key is stored
    own = hashlib.sha256(text.encode()).hexdigest()
    return Manifest(holds, length, chunks, tensors, fields["digest"], text, own, **more)


def _of_update(fields: Mapping[str, Any]) -> dict[str, Any]:
    _want(is_task(fields.get("task")), "task is not 32 hexadecimal digits")
    _want(is_digest(fields.get("base")), "base is not a SHA-256")
    _want(isinstance(fields.get("keeps"), bool), "keeps is neither true nor false")
    weight = _numbers(fields.get("weight"), "weight")
    metrics = _numbers(fields.get("metrics"), "metrics")
    names = ("task", "base", "keeps")
    return {**{name: fields[name] for name in names}, "weight": weight, "metrics": metrics}


def _chunks(value: Any, length: int) -> tuple[tuple[str, int], ...]:
    _want(isinstance(value, list), "chunks are not a list")
    _want(len(value) == -(-length // CHUNK), f"{len(value)} chunks are not those of {length} bytes, {CHUNK} each")
    found = []
    lengths: dict[str, int] = {}
    for i, chunk in enumerate(value):
        _want(isinstance(chunk, list) and len(chunk) == 2 and is_digest(chunk[0]), f"chunk {i} is no [SHA-256, length]")
        expected = min(CHUNK, length - i * CHUNK)
        _want(type(chunk[1]) is int and chunk[1] == expected, f"chunk {i} has {chunk[1]!r:.40} bytes, not {expected}")
        _want(lengths.setdefault(chunk[0], expected) == expected, f"chunk {i} is there with another length as well")
        found.append((chunk[0], chunk[1]))
    return tuple(found)


def _tensors(value: Any, length: int) -> tuple[Mapping[str, Any], ...]:
    _want(isinstance(value, list), "tensors are not a list")
    if len(value) > MAX_TENSORS:
        raise Refusal("TOO_LARGE", f"{len(value)} tensors are more than the {MAX_TENSORS} that are taken")
    at, paths = 0, set()
    for i, entry in enumerate(value):
        _want(isinstance(entry, dict) and entry.keys() == _ENTRY, f"tensor {i} has not the keys {sorted(_ENTRY)}")
        path = _path(entry["path"], i)
        _want(path not in paths, f"tensor {i} has the path of another one")
        paths.add(path)
        size = _size(entry, i)
        _want(
            type(entry["nbytes"]) is int and entry["nbytes"] == size,
            f"tensor {i} has not the {size} bytes of its shape",
        )
        _want(type(entry["offset"]) is int and entry["offset"] == at, f"tensor {i} does not begin where the last ends")
        at += size
    _want(at <= length, f"tensors of {at} bytes are not in {length}")
    return tuple(value)


def _path(value: Any, i: int) -> tuple[str | int, ...]:
    _want(isinstance(value, list) and len(value) <= MAX_DEPTH, f"tensor {i} has no path of at most {MAX_DEPTH} keys")
    for key in value:
        fine = (isinstance(key, str) and _is_name(key)) or (type(key) is int and 0 <= key < 2**31)
        _want(fine, f"tensor {i} has a key that is no name of at most {MAX_NAME} printable characters")
    return tuple(value)


def _size(entry: Mapping[str, Any], i: int) -> int:
    dtype, shape = bits.dtype(entry["dtype"], entry["kind"]), entry["shape"]
    _want(dtype is not None, f"tensor {i} has dtype {entry['dtype']!r:.40}, which does not travel")
    assert dtype is not None
    fine = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    _want(fine and all(type(n) is int and 0 <= n < 2**48 for n in shape), f"tensor {i} has shape {shape!r:.40}")
    return int(math.prod(shape) * dtype.itemsize)


def _numbers(value: Any, what: str) -> dict[str, float]:
    found = _object(value, what)
    _want(len(found) <= MAX_METRICS, f"{what} has {len(found)} entries of at most {MAX_METRICS}")
    for name, x in found.items():
        _want(_is_name(name), f"{what} has a name that is not of at most {MAX_NAME} printable characters")
        _want(type(x) in (int, float) and abs(x) <= 1e300, f"{what}.{name} = {x!r:.40} is no finite number")
    return {name: float(x) for name, x in found.items()}


def _is_name(text: str) -> bool:
    return len(text) <= MAX_NAME and text.isprintable()


def _object(value: Any, what: str) -> dict[str, Any]:
    _want(isinstance(value, dict), f"{what} is not an object")
    return value  # type: ignore[no-any-return]


def _whole(value: Any, what: str) -> int:
    _want(type(value) is int and 0 <= value < 2**62, f"{what} is {value!r:.40}, no whole number of bytes")
    return int(value)


def _want(right: bool, otherwise: str) -> None:
    if not right:
        raise Refusal("BAD_MANIFEST", f"the manifest is refused: {otherwise}")
