"""OpenTelemetry traces, an extra: a round, each site's task in it, and each chunk that came for it.

::

    round            run, number, sites, failures
    └── task         site, kind; from when it was handed out to its answer
        └── upload   site, bytes

Nothing here raises or waits: spans go to the collector from a thread of OpenTelemetry's own, and are dropped where it
does not take them.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from insitu.core import events
from insitu.core.errors import MissingExtra
from insitu.engines.https.http import Request, Response, parsed

MOST = 10_000
"""Tasks that are open at once; those beyond have no span."""


class Traces(Protocol):
    """What the coordinator tells of."""

    def event(self, event: events.Event) -> None:
        """Something happened in a run."""
        ...

    def answered(self, path: str, request: Request, response: Response, began: int) -> None:
        """A site's request to the route ``path`` was answered; it came at ``began``, nanoseconds since 1970."""
        ...

    def close(self) -> None:
        """Sends what is waiting."""
        ...


class NoTraces:
    """Where nobody collects any."""

    def event(self, event: events.Event) -> None:
        """Nothing."""

    def answered(self, path: str, request: Request, response: Response, began: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def traces_of(endpoint: str, federation: str) -> Traces:
    """Traces sent to a collector (OTLP over HTTP) at ``http://host:4318``; none where ``endpoint`` is empty.

    Raises MissingExtra where OpenTelemetry is not installed.
    """
    if not endpoint:
        return NoTraces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra("opentelemetry", "otel", f"[traces] endpoint = {endpoint!r}") from error
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=3)
    return OpenTraces(BatchSpanProcessor(exporter), federation)


class OpenTraces:
    """Makes spans, and hands them to a processor of OpenTelemetry's."""

    def __init__(self, processor: Any, federation: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        named = {"service.name": "insitu-coordinator", "insitu.federation": federation}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("insitu")
        self._rounds: dict[tuple[str, int], Any] = {}
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def event(self, event: events.Event) -> None:
        """A round begins or ends."""
        key = (event.run, event.round)
        with self._lock:
            if isinstance(event, events.RoundStarted):
                attributes = {"run": event.run, "round": event.round, "asked": event.cohort}
                self._rounds[key] = self._tracer.start_span("round", attributes=attributes)
            elif isinstance(event, events.RoundCommitted):
                self._end(key, sites=event.clients, failed=event.failed, void=False)
            elif isinstance(event, events.RoundDiscarded):
                self._end(key, reason=event.reason, void=True)
            elif isinstance(event, (events.RunStopped, events.RunFinished)):
                for left in [one for one in self._rounds if one[0] == event.run]:
                    self._end(left, void=True)

    def answered(self, path: str, request: Request, response: Response, began: int) -> None:
        """A task begins, gets a chunk, or ends."""
        if request.peer is None or response.status >= 400:
            return
        name, task = request.peer.name, request.arguments.get("task", "")
        with self._lock:
            if path == "/v1/next" and response.status == 200 and isinstance(response.body, bytes):
                self._begin(name, parsed(response.body))
            elif path == "/v1/tasks/{task}/chunks/{digest}":
                self._upload(name, task, request.length or 0, began)
            elif path in ("/v1/tasks/{task}/update", "/v1/tasks/{task}/failure"):
                span = self._tasks.pop(task, None)
                if span is not None:
                    span.set_attribute("failed", path.endswith("failure"))
                    span.end()

    def close(self) -> None:
        """Sends what is waiting."""
        with self._lock:
            for span in [*self._tasks.values(), *self._rounds.values()]:
                span.end()
            self._tasks.clear()
            self._rounds.clear()
        self._provider.shutdown()

    def _begin(self, site: str, told: dict[str, Any]) -> None:
        if told["task"] in self._tasks or len(self._tasks) >= MOST:
            return
        attributes = {"site": site, "run": told["run"], "round": told["round"], "kind": told["kind"]}
        parent = self._within(self._rounds.get((told["run"], told["round"])))
        self._tasks[told["task"]] = self._tracer.start_span("task", parent, attributes=attributes)

    def _upload(self, site: str, task: str, length: int, began: int) -> None:
        parent = self._within(self._tasks.get(task))
        attributes = {"site": site, "bytes": length}
        self._tracer.start_span("upload", parent, attributes=attributes, start_time=began).end()

    def _within(self, span: Any) -> Any:
        from opentelemetry import trace

        return None if span is None else trace.set_span_in_context(span)

    def _end(self, key: tuple[str, int], **attributes: Any) -> None:
        span = self._rounds.pop(key, None)
        if span is None:
            return
        for name, value in attributes.items():
            span.set_attribute(name, value)
        span.end(time.time_ns())
