"""Lines: a few plain lines on stderr, for scripts and notebooks."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from insitu.core import events

EVERY = 2.0
"""Seconds between two lines about rounds."""


class Lines:
    """Says which engine was taken, how rounds go (a line every two seconds at most), and how it ended."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._said = 0.0
        self._last: events.Evaluated | None = None
        self._rounds = 0

    def __call__(self, event: events.Event) -> None:
        text = self._text(event)
        if text:
            print(f"insitu {event.run}: {text}", file=self.stream or sys.stderr)

    def _text(self, event: events.Event) -> str:
        if isinstance(event, events.RunStarted):
            self._rounds = event.rounds
            chosen = ", ".join(f"{k} {v}" for k, v in event.choices.items() if k != "engine")
            begin = f"resumed after round {event.round}, " if event.resumed else ""
            return f"{begin}{event.clients} clients, {event.rounds} rounds, engine {event.engine}" + (
                f" ({chosen})" if chosen else ""
            )
        if isinstance(event, events.Evaluated):
            return self._evaluated(event)
        if isinstance(event, events.ClientFailed):
            return f"round {event.round}: client {event.client!r} failed: {event.error}"
        if isinstance(event, events.RoundDiscarded):
            return f"round {event.round} is void: {event.reason}"
        if isinstance(event, events.Notice):
            return event.text
        if isinstance(event, events.RunStopped):
            return event.reason
        if isinstance(event, events.RunFinished):
            end = f"; {self._figures(self._last)}" if self._last else ""
            return f"{event.round} rounds in {event.seconds:.1f} s{end}"
        return ""

    def _evaluated(self, event: events.Evaluated) -> str:
        if event.where == "central" or self._last is None or self._last.where != "central":
            self._last = event
        if time.monotonic() - self._said < EVERY or event is not self._last:
            return ""
        self._said = time.monotonic()
        return f"round {event.round} of {self._rounds}: {self._figures(event)}"

    def _figures(self, event: events.Evaluated) -> str:
        where = "" if event.where == "central" else "clients' "
        return ", ".join(f"{where}{name} {value:.4f}" for name, value in event.metrics.items())
