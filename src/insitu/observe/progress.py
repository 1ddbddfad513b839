"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from insitu.core import events
from insitu.observe.lines import Lines

SHOWN = 5
"""Failures of clients that are shown one by one; the rest are counted."""
RECENT = 20
"""Rounds over which the speed is taken."""


class Progress:
    """Shows a run on stderr: rounds, the newest metrics, clients a second, the time left.

    Notices, void rounds and the first failures of clients are printed above the bar. Without a terminal it prints the
    lines of :class:`~insitu.observe.lines.Lines`. Use it in a ``with``, so that an error in the run leaves the terminal
    as it was::

        with Progress() as progress:
            run(plan, clients, rounds=50, observers=[progress])
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._lines = None if self.console.is_terminal else Lines(self.console.file)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._failures = 0
        self._metrics: dict[str, dict[str, float]] = {}
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal's hands; what it last showed stays there."""
        atexit.unregister(self.close)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._tell_rest()

    def __call__(self, event: events.Event) -> None:
        if self._lines is not None:
            self._in_lines(self._lines, event)
        elif isinstance(event, events.RunStarted):
            self._start(event)
        elif isinstance(event, events.RoundCommitted):
            self._committed(event)
        elif isinstance(event, events.Evaluated):
            self._metrics[event.where] = event.metrics
            self._show()
        elif isinstance(event, (events.RunFinished, events.RunStopped)):
            self._end(event)
        elif (said := self._said(event)) is not None:
            self._print(said, "yellow")

    def _in_lines(self, lines: Lines, event: events.Event) -> None:
        if not isinstance(event, events.ClientFailed) or self._said(event) is not None:
            lines(event)
        if isinstance(event, (events.RunFinished, events.RunStopped)):
            self._tell_rest()

    def _said(self, event: events.Event) -> str | None:
        """What is worth a line above the bar, or None."""
        if isinstance(event, events.Notice):
            return event.text
        if isinstance(event, events.RoundDiscarded):
            return f"round {event.round} is void: {event.reason}"
        if isinstance(event, events.ClientFailed):
            self._failures += 1
            if self._failures <= SHOWN:
                return f"round {event.round}: client {event.client!r} failed: {event.error}"
        return None

    def _tell_rest(self) -> None:
        """Counts the failures that were not shown; at the end, whether the run came to a good one or not."""
        rest = self._failures - SHOWN
        self._failures = 0
        if rest > 0:
            self._print(f"and {rest} more failure{'s' if rest > 1 else ''} of clients", "yellow")

    def _start(self, event: events.RunStarted) -> None:
        self.close()
        self._metrics = {}
        self._recent.clear()
        chosen = ", ".join(f"{name} {value}" for name, value in event.choices.items() if name != "engine")
        resumed = f", resumed after round {event.round}" if event.resumed else ""
        engine = f"engine {event.engine}" + (f" ({chosen})" if chosen else "")
        self._print(f"run {event.run}: {event.clients} clients, {event.rounds} rounds, {engine}{resumed}")
        self._bar = Bar(
            TextColumn("round"), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.fields[figures]}"),
            TextColumn("{task.fields[speed]}", style="dim"), TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console, refresh_per_second=2,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=event.rounds, completed=event.round, figures="", speed="")
        self._bar.start()
        atexit.register(self.close)  # for those who do not use `with`: a cursor that stays hidden is no fun

    def _committed(self, event: events.RoundCommitted) -> None:
        self._recent.append((event.clients, event.seconds))
        self._metrics["train"] = event.metrics
        self._show(completed=event.round)

    def _show(self, completed: int | None = None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, figures=self._figures(), speed=self._speed())

    def _figures(self) -> str:
        """The newest metrics from where they say most: the central test set, else the clients', else training."""
        for where, prefix in (("central", ""), ("clients", "clients' "), ("train", "train ")):
            if self._metrics.get(where):
                return "  ".join(f"{prefix}{name} {value:.4f}" for name, value in self._metrics[where].items())
        return ""

    def _speed(self) -> str:
        clients, seconds = (sum(column) for column in zip(*self._recent, strict=True)) if self._recent else (0, 0)
        return f"{clients / seconds:.{0 if clients > 20 * seconds else 1}f} clients/s" if seconds else ""

    def _end(self, event: events.RunFinished | events.RunStopped) -> None:
        self.close()
        if isinstance(event, events.RunStopped):
            self._print(event.reason, "yellow")

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)
