"""A coordinator's worker processes: what they are told, and what one of them does first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from insitu.core.federation import Blobs
from insitu.engines.https.authority import Authority
from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.workers.fleet import Fleet
from insitu.engines.https.serve.workers.relayed import Answers
from insitu.federation.folder import Folder
from insitu.federation.settings import Settings


def fleet_of(folder: Folder, settings: Settings, authority: Authority, limits: Limits, table: Answers) -> Fleet:
    """The workers that ``federation.toml`` asks for, not yet started; made on the loop."""
    told = {
        "limits": asdict(limits), "chain": str(authority.chain), "key": str(authority.key),
        "bundle": str(authority.bundle), "blobs": folder.place(settings.blobs.url), "spool": str(folder.spool),
    }  # fmt: skip
    return Fleet(table, settings.workers, __name__, told)


def main(line: int, connections: int, parent: int) -> int:
    """A worker's process, on two file descriptors of its parent's; the exit status."""
    from insitu.engines.https.serve.workers import process

    return process.run(line, connections, parent, _opened)


def _opened(told: Mapping[str, Any]) -> Blobs:
    from insitu.store.blobs.opened import open_blobs

    return open_blobs(told["blobs"], spool=told["spool"])
