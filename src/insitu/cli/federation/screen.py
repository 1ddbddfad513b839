"""What ``insitu watch`` shows: a screen that changes in place on a terminal, a line an event elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from insitu.federation import status

NEWEST = 8
"""Events that stand below the status."""
BAR = 40
SLOW = 5.0
"""Seconds after which a site that is waited for is worth a line, where there is no screen."""


class Watch:
    """Shows a run's status and its newest events."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self._told: Mapping[str, Any] = {}
        self._newest: list[str] = []
        self._away = ""
        self._said = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def patience(self, seconds: float) -> float:
        """How long to wait for events: on a terminal the seconds that sites have been waited for go on meanwhile."""
        return seconds if self._live is None else min(seconds, 1.0)

    def show(self, told: Mapping[str, Any]) -> None:
        """The status, now."""
        self._told, self._away = told, ""
        if self._live is not None:
            self._live.update(self._screen())
        elif (line := self._line(told)) != self._said:
            self._said = line
            self._print(line)

    def events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """What happened since."""
        lines = [line for line in map(said, events) if line]
        self._newest = [*self._newest, *lines][-NEWEST:]
        if self._live is not None:
            self._live.update(self._screen())
        else:
            for line in lines:
                self._print(line)

    def away(self, why: str) -> None:
        """The coordinator cannot be reached; it is asked again."""
        if self._live is not None:
            self._away = why
            self._live.update(self._screen())
        elif why != self._away:
            self._away = why
            self._print(why)

    def _line(self, told: Mapping[str, Any]) -> str:
        """What stands in lines of their own, where there is no screen: a change of status, and for whom it waits."""
        names = ", ".join(one["site"] for one in told["waiting_for"] if (one.get("since") or 0.0) >= SLOW)
        text = f"run {told['run']}: {told['status']}"
        if told["status"] == "queued":
            text += f": {told['next']}"
        if told["reason"]:
            text += f": {told['reason']}"
        return text + (f", round {told['round']}, waiting for {names}" if names else "")

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _screen(self) -> Group:
        told = self._told
        parts: list[Any] = []
        if told:
            done = ProgressBar(total=max(1, told["of"]), completed=told["committed"], width=BAR)
            first, *rest = status.lines(told)
            parts += [Text(first, style="bold"), done, *(Text(line, overflow="fold") for line in rest)]
        if self._away:
            parts.append(Text(self._away, style="yellow"))
        return Group(*parts, *(Text(line, style="dim", overflow="fold") for line in self._newest))


def said(event: Mapping[str, Any]) -> str:
    """An event as a line; empty where it is not worth one."""
    kind, round = event["event"], event["round"]
    if kind == "RunStarted":
        begin = f"goes on after round {round}" if event["resumed"] else "starts"
        return f"{begin}: {event['clients']} sites, {event['rounds']} rounds"
    if kind == "RoundCommitted":
        failed = f", {event['failed']} failed" if event["failed"] else ""
        figures = _figures(event["metrics"], "train ")
        return f"round {round}: {event['clients']} sites{failed} in {event['seconds']:.1f} s{figures}"
    if kind == "Evaluated":
        return f"round {round}: on held-out data{_figures(event['metrics'], '')}"
    if kind == "ClientFailed":
        return f"round {round}: {event['client']} failed: {event['error']}"
    if kind == "RoundDiscarded":
        return f"round {round} is void: {event['reason']}"
    return {"Notice": event.get("text", ""), "RunStopped": event.get("reason", "")}.get(kind, "")


def _figures(metrics: Mapping[str, Any], prefix: str) -> str:
    return "".join(f", {prefix}{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
