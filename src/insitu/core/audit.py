"""A trail whose entries are chained by hashes, so that whoever changes one afterwards is found out.

hash = SHA-256(hash of the entry before it, as hexadecimal digits ‖ canonical JSON of seq, at, who, what, data);
the first entry stands on ``GENESIS``. JSON is canonical with sorted keys, no spaces, in ASCII.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from insitu.core.part import to_json

GENESIS = "0" * 64
"""What the first entry's hash is made with."""


class Broken(NamedTuple):
    """The first entry of a trail that does not fit, and why."""

    seq: int
    why: str


def chained(entry: Mapping[str, Any], seq: int, before: str) -> dict[str, Any]:
    """``entry`` (at, who, what, data) as the trail's number ``seq``, after the entry whose hash is ``before``."""
    whole = {
        "seq": seq,
        "at": float(entry["at"]),
        "who": str(entry.get("who", "")),
        "what": str(entry["what"]),
        "data": json.loads(to_json(entry.get("data", {}))),
    }
    return {**whole, "before": before, "hash": digest(whole, before)}


def digest(entry: Mapping[str, Any], before: str) -> str:
    """The hash of an entry that stands after ``before``."""
    whole = {name: entry[name] for name in ("seq", "at", "who", "what", "data")}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(before.encode("ascii") + text.encode("ascii")).hexdigest()


def verify(entries: Iterable[Mapping[str, Any]]) -> Broken | None:
    """The first entry that was changed, or has lost its neighbour; None where the trail is whole.

    Entries come in order and may begin anywhere: one that is not number 1 is taken at its word for what stands before
    it. Entries cut off at the end leave no trace here: compare the last hash with one that was noted elsewhere.
    """
    last: tuple[int, str] | None = None
    for entry in entries:
        seq = int(entry["seq"])
        if last is None:
            last = (seq - 1, GENESIS if seq == 1 else str(entry["before"]))
        number, before = last
        if seq != number + 1:
            return Broken(seq, f"entry {seq} stands where number {number + 1} is missing")
        if entry["before"] != before:
            return Broken(seq, f"entry {seq} does not follow the one before it, whose hash is {before}")
        try:
            own = digest(entry, before)
        except (KeyError, TypeError, ValueError) as error:
            return Broken(seq, f"entry {seq} is no entry: {error}")
        if entry["hash"] != own:
            return Broken(seq, f"entry {seq} was changed: its hash is {entry['hash']}, and its contents have {own}")
        last = (seq, own)
    return None
