"""What a worker process of a coordinator runs. Imports little: a worker that died is missed until this is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insitu.core.federation import Blobs
from insitu.engines.https.serve.workers import process
from insitu.store.blobs.opened import open_blobs


def main(line: int, connections: int) -> int:
    """Works on two file descriptors of its parent's; the exit status."""
    return process.run(line, connections, opened)


def opened(told: Mapping[str, Any]) -> Blobs:
    """The coordinator's blobs. Raises StoreError."""
    return open_blobs(told["blobs"], spool=told["spool"])
