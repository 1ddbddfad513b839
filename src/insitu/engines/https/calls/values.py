"""What calls are about, apart from who has done what: messages as they lie on the disk, and the names of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insitu.core.federation import CallKey
from insitu.engines.https.wire.manifest import canonical, digest_of


@dataclass(frozen=True)
class Message:
    """What clients are told: its manifest's digest and text, and its chunks with their lengths."""

    digest: str
    text: str
    length: int
    chunks: Mapping[str, int]
    tensors: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Message:
        """Out of what :func:`~insitu.engines.https.wire.packing.pack` returned, or the document that it became."""
        text = canonical(manifest)
        chunks = dict(manifest["chunks"])
        return cls(digest_of(manifest), text, manifest["length"], chunks, tuple(manifest["tensors"]))


def task_id(key: CallKey, client: str, description: str, message: str) -> str:
    """A task's name, the same after a restart."""
    return digest_of([key.run, key.round, key.kind, key.number, client, description, message])[:32]
