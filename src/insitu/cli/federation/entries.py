"""Entries of audit logs, and times, as lines."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from insitu.cli import screen


def moment(seconds: float) -> str:
    """Seconds since 1970 as local time."""
    return screen.moment(datetime.fromtimestamp(seconds, UTC).isoformat())


def line(entry: Mapping[str, Any]) -> str:
    """``    12  2026-11-26 22:46:31  anna  enrol  {"role": "viewer"}``: what strangers chose in it is escaped."""
    from insitu.core.part import to_json

    who = to_json(entry["who"])[1:-1]
    return f"{entry['seq']:>6}  {moment(entry['at'])}  {who}  {entry['what']}  {to_json(entry['data'])}"
