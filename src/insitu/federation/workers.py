"""A coordinator's worker processes: how many, and what they are told."""

from __future__ import annotations

from dataclasses import asdict

from insitu.engines.https.authority import Authority
from insitu.engines.https.http import Answers
from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.workers.fleet import Fleet
from insitu.federation.folder import Folder
from insitu.federation.settings import Settings

ENTRY = "insitu.federation.worker"


def fleet_of(folder: Folder, settings: Settings, authority: Authority, limits: Limits, table: Answers) -> Fleet:
    """The workers that ``federation.toml`` asks for, not yet started; made on the loop."""
    told = {
        "limits": asdict(limits), "chain": str(authority.chain), "key": str(authority.key),
        "bundle": str(authority.bundle), "blobs": folder.place(settings.blobs.url), "spool": str(folder.spool),
    }  # fmt: skip
    return Fleet(table, settings.workers, ENTRY, told)
