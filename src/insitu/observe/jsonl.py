"""JsonLines: every event as one line of JSON, for scripts and other programs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from insitu.core import events
from insitu.core.part import to_json


class JsonLines:
    """Appends to a file one JSON object an event: ``event``, ``time`` (UTC, ISO 8601), ``run``, ``round``, its fields.

    A line is on its way to the disk before the next event. The file is opened for each, so that it may be moved
    away while a run goes on. What is not finite is null, since JSON has no NaN.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, event: events.Event) -> None:
        fields = event.plain()
        data = {"event": fields.pop("event"), "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(data, ascii_only=False) + "\n")
