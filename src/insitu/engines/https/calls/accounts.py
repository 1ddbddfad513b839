"""What the exchange speaks of: an ask, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from insitu.core.federation import Call, CallKey
from insitu.engines.https.calls.open_call import Bell
from insitu.rounds.plan import Plan

Declared = Callable[[str], Mapping[str, Any]]
"""What a site says of its data."""


@dataclass(frozen=True)
class Ask:
    """What one client is asked in a call: the digest of its message's manifest, and the other fields of its task."""

    client: str
    message: str
    task: Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """What one client told: the manifest of its update and the SHA-256 of that, or an error. ``task``: which it was."""

    index: int
    client: str
    task: str
    manifest: Mapping[str, Any] | None
    digest: str = ""
    error: str = ""


@dataclass
class Attached:
    """A run that sites work for. ``known``: its calls in the ledger that nobody has taken up yet in this process."""

    plan: Plan
    description: str
    declared: Declared
    known: dict[CallKey, Call]
    bell: Bell = field(default_factory=Bell)
