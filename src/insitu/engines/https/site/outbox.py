"""Updates that are finished and not yet acknowledged: a site that is killed after training need not train again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from insitu.core import failpoints
from insitu.core.errors import Refusal
from insitu.engines.https.site.disk import Disk
from insitu.engines.https.wire import manifest, packing

FOLDER, MANIFEST = "outbox", "manifest"


class Outbox:
    """Finished updates by task. One is there only once its manifest is, which is written last."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def put(self, task: str, value: Any, more: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the chunks, then the manifest with what else it says; durable on return."""

        def keep(chunk: bytes) -> str:
            digest = hashlib.sha256(chunk).hexdigest()
            self._disk.write(chunk, FOLDER, task, digest)
            return digest

        told = {**packing.pack(value, "update", keep), **more}
        failpoints.hit("site.outbox.before")
        self._disk.write(manifest.canonical(told).encode(), FOLDER, task, MANIFEST)
        failpoints.hit("site.outbox.after")
        return told

    def get(self, task: str) -> dict[str, Any] | None:
        """The manifest of a finished update; None where there is none, or it is no longer what was written."""
        try:
            told = json.loads(self._disk.read(FOLDER, task, MANIFEST))
            found = manifest.checked(told, 2**62, "update")
            whole = all(hashlib.sha256(self.chunk(task, digest)).hexdigest() == digest for digest, _ in found.chunks)
        except (FileNotFoundError, ValueError, Refusal):
            return None
        return dict(told) if whole and found.task == task else None

    def chunk(self, task: str, digest: str) -> bytes:
        """One of its chunks."""
        return self._disk.read(FOLDER, task, digest)

    def remove(self, task: str) -> None:
        """What was acknowledged, or will never be."""
        self._disk.remove(FOLDER, task)

    def keep_only(self, task: str) -> None:
        """Whatever else is there belongs to rounds that are over."""
        for other in self._disk.list(FOLDER):
            if other != task:
                self._disk.remove(FOLDER, other)
