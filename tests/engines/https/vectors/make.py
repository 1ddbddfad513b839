"""Writes version_1.json anew, from what insitu sends today: only for a new version of the protocol.

python tests/engines/https/vectors/make.py > tests/engines/https/vectors/version_1.json
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from insitu.core import wire
from insitu.engines.https.wire.manifest import checked, digest_of
from insitu.engines.https.wire.packing import pack

TREES: dict[str, Any] = {
    "a model": {
        "params": {"weight": np.array([[1.5, -2.0], [0.25, 3e-8]], dtype=np.float32), "bias": np.array([0.5, -0.5])},
        "buffers": {"count": np.array(7, dtype=np.int64)},
    },
    "all kinds of leaves": {
        "none": None, "yes": True, "whole": 2**70, "real": -0.0, "text": "α\n\"", "list": [1, 2.5], "pair": ("a", None),
        "empty": np.zeros((0, 3), dtype=np.float16), "flags": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
    },
    "nothing": {},
}  # fmt: skip
MODEL = "a model"


def large() -> dict[str, Any]:
    """Ten million bytes by rule, which are three chunks."""
    return {"x": (np.arange(10_000_000, dtype=np.int64) * 7 % 251).astype(np.uint8)}


def vectors() -> dict[str, Any]:
    """The file's content."""
    cases = []
    for name, tree in TREES.items():
        chunks: list[bytes] = []
        manifest = pack(tree, "message", lambda data, kept=chunks: kept.append(bytes(data)) or sha(data))
        told = {"name": name, "frame": b"".join(chunks).hex(), "manifest": manifest, "id": digest_of(manifest)}
        cases.append({**told, "digest of the tree": wire.digest(tree)})
    many = pack(large(), "message", sha)
    base = cases[0]["id"]
    update = {
        **pack(TREES[MODEL], "update", sha), "task": "00112233445566778899aabbccddeeff", "base": base,
        "weight": {"params": 31.0}, "metrics": {"loss": 12.5, "examples": 31.0}, "keeps": False,
    }  # fmt: skip
    key = ["20261124-120000-abcd", 3, "train", 0, "berlin", "0" * 64, base]
    return {
        "protocol": 1,
        "trees": cases,
        "many chunks": {"rule": "x[i] = 7 i mod 251, uint8, i < 10 000 000", "manifest": many, "id": digest_of(many)},
        "update": {"manifest": update, "id": checked(update, 2**20, "update").id},
        "task": {"of": key, "id": digest_of(key)[:32]},
    }


def sha(data: Any) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=1))
