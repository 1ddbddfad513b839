"""What a federation keeps: who belongs to it, what was asked and told, and the bytes of it: interfaces and values.

``engines/https`` works with these; ``store`` keeps them, in SQLite or PostgreSQL and in a folder or a bucket.
Times are seconds since 1970 (UTC), lengths bytes, digests the SHA-256 as 64 hexadecimal digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

Role = Literal["site", "operator", "viewer"]
ROLES: tuple[Role, ...] = ("site", "operator", "viewer")


@dataclass(frozen=True)
class Member:
    """Someone who is enrolled: a site, or a person at a terminal.

    serial    of the certificate that counts now, as hexadecimal digits; a renewed one takes its place
    declared  what a site says of its data: ``examples``, ``holdout``, ``features``, ``classes``, versions
    """

    name: str
    role: Role
    serial: str
    enrolled: float
    declared: Mapping[str, Any] = field(default_factory=dict)
    revoked: float | None = None
    seen: float | None = None


@dataclass(frozen=True)
class Invitation:
    """A one-time token, of which only the digest is kept."""

    token: str
    name: str
    role: Role
    expires: float
    used: float | None = None


class CallKey(NamedTuple):
    """One call of a session's ``run``: everyone in a cohort asked once.

    ``number`` counts the calls of (run, round, kind) from 0.
    """

    run: str
    round: int
    kind: str
    number: int


@dataclass(frozen=True)
class Entry:
    """Something that happened in a call. ``seq`` counts from 0 without gaps.

    kind    ``accepted`` (data: ``manifest`` digest, ``bytes``), ``failed`` (``error``), ``closed`` (``reason``)
    client  whose; empty for ``closed``
    now     seconds the call had been open, by a clock that never goes back
    """

    seq: int
    kind: Literal["accepted", "failed", "closed"]
    client: str
    now: float
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A call as it was opened, and what has happened in it.

    asked   the clients in the cohort's order; ``message`` the digest of what each was told (one for all, or by client)
    opened  when, by the wall clock, for people to read
    """

    key: CallKey
    asked: Sequence[str]
    message: Mapping[str, str]
    opened: float
    entries: Sequence[Entry] = ()


@dataclass(frozen=True)
class Submitted:
    """A run that an operator asked for. ``status``: queued, running, paused, stopping, stopped, finished, failed."""

    run: str
    tables: Mapping[str, Any]
    by: str
    at: float
    status: str = "queued"
    reason: str = ""


class Ledger(Protocol):
    """Durable facts. A method is one transaction, on the disk before it returns; it happens as a whole or not at all.

    Raises StoreError where that is not possible, and Fenced, before anything is written, where another coordinator
    has taken over. All may be called from any thread.
    """

    # who belongs to it
    def invite(self, invitation: Invitation) -> None: ...
    def invitations(self) -> list[Invitation]: ...
    def enrol(self, member: Member, token: str, now: float) -> None:
        """Takes a member in and uses up the invitation with this token's digest.

        Raises TokenError (unknown, used, expired, or for another name) and changes nothing then.
        """
        ...

    def add_member(self, member: Member) -> None:
        """Takes a member in without an invitation: the operator who founds a federation."""
        ...

    def members(self) -> list[Member]: ...
    def declare(self, name: str, declared: Mapping[str, Any], now: float) -> None: ...
    def renew(self, name: str, serial: str) -> None: ...
    def revoke(self, name: str, now: float) -> None: ...

    # what was asked for
    def submit(self, run: Submitted) -> None: ...
    def mark(self, run: str, status: str, reason: str = "") -> None: ...
    def submitted(self) -> list[Submitted]:
        """In the order of their submission."""
        ...

    def admit(self, run: str, names: Sequence[str], since: int) -> None:
        """These sites take part in the run from round ``since`` on, at the next free places."""
        ...

    def roster(self, run: str) -> list[tuple[str, int]]:
        """(site, since) by place."""
        ...

    # what was told
    def open_call(self, call: Call) -> None:
        """Raises StoreError where the call is there already."""
        ...

    def append(self, key: CallKey, entries: Sequence[Entry]) -> None:
        """Raises StoreError where a ``seq`` is taken, or a client has an entry in this call already."""
        ...

    def calls(self, run: str) -> list[Call]:
        """All that is kept of a run, in the order in which calls were opened."""
        ...

    def forget(self, run: str, before: int) -> None:
        """Drops calls of rounds before ``before``, and those to evaluate and to predict that are closed."""
        ...

    # documents: manifests and descriptions, small JSON by its digest
    def keep(self, digest: str, text: str, run: str) -> None: ...
    def document(self, digest: str) -> str | None: ...
    def discard(self, run: str, digests: Iterable[str] | None = None) -> int:
        """Removes documents that no call names: these, or all that the run was the first to have; how many."""
        ...

    # what can be looked up later
    def audit(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Appends entries, each chained to the one before it by a hash."""
        ...

    def audited(self, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Entries with ``seq`` > after: seq, at, who, what, data, before, hash."""
        ...

    # who may write
    def lead(self, holder: str, seconds: float) -> bool:
        """Takes or renews leadership for so long, by the database's own clock; False while another one holds it."""
        ...

    def resign(self) -> None: ...
    def leader(self) -> tuple[str, float] | None:
        """Who leads, and for how many seconds more."""
        ...

    def close(self) -> None: ...


class Part(Protocol):
    """A blob that is arriving. What was written and synced by ``suspend`` is there after a crash."""

    offset: int

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends. Raises BlobError where that would be longer than declared."""
        ...

    def finish(self) -> None:
        """Checks length and digest, syncs, and makes the blob visible, whole, under its digest. Raises BlobError."""
        ...

    def suspend(self) -> None:
        """Keeps what has arrived, to go on later."""
        ...

    def abandon(self) -> None: ...


class Blobs(Protocol):
    """Bytes by their SHA-256, at most a chunk long. Whoever asks for one that is not there gets BlobError."""

    near: bool
    """Whether reading a chunk in portions costs little more than reading it at once."""

    def length(self, digest: str) -> int | None:
        """How long it is, or None where it is not there."""
        ...

    def part(self, owner: str, digest: str, length: int) -> Part:
        """The part of a blob that this owner has sent so far, to go on with. One at a time for (owner, digest)."""
        ...

    def arrived(self, owner: str, digest: str) -> int:
        """How many bytes of a part are kept."""
        ...

    def put(self, data: bytes | memoryview) -> str:
        """Keeps it durably, and returns its digest."""
        ...

    def read(self, digest: str, offset: int = 0, length: int | None = None) -> bytes: ...
    def fill(self, digest: str, offset: int, room: memoryview) -> int:
        """Puts the bytes from ``offset`` on into ``room``, without looking at the digest; how many there were."""
        ...

    def sync(self) -> None:
        """Makes everything finished so far durable (folders are synced here, files before)."""
        ...

    def shown(self, digest: str) -> None:
        """Another process has finished this one, in the same place: the next ``sync`` makes it durable as well."""
        ...

    def remove(self, digests: Iterable[str]) -> None: ...
    def sweep(self, keep: Iterable[str], older: float) -> int:
        """Removes blobs that are not to be kept and parts, where untouched for ``older`` seconds; how many."""
        ...
