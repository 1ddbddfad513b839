"""Traces: a round, its tasks, their uploads; told by events and by what sites ask."""

from __future__ import annotations

import pytest

from insitu.core import events
from insitu.core.errors import PlanError
from insitu.engines.https.http import Peer, Request, Response
from insitu.federation.settings import TracesTable
from insitu.federation.traces import NoTraces, traces_of

pytest.importorskip("opentelemetry.sdk")

TASK = {"task": "t1", "run": "r", "round": 3, "kind": "train"}


@pytest.fixture
def kept():
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from insitu.federation.traces import OpenTraces

    exporter = InMemorySpanExporter()
    traces = OpenTraces(SimpleSpanProcessor(exporter), "study")
    yield traces, exporter
    traces.close()


def asked(traces, path, response=None, length=None):
    request = Request("POST", path, Peer("berlin", "site", "1"), length=length, arguments={"task": "t1"})
    traces.answered(path, request, response or Response.json({}), 1_000_000_000)


def test_a_round_has_tasks_and_they_have_uploads(kept):
    traces, exporter = kept
    traces.event(events.RoundStarted("r", 3, 2))
    asked(traces, "/v1/next", Response(204))
    asked(traces, "/v1/next", Response.json(TASK))
    asked(traces, "/v1/next", Response.json(TASK))  # the same again, as its answer was lost
    asked(traces, "/v1/tasks/{task}/chunks/{digest}", length=77)
    asked(traces, "/v1/tasks/{task}/update", Response.json({}, 422))  # refused: it goes on
    asked(traces, "/v1/tasks/{task}/update")
    traces.event(events.RoundCommitted("r", 3, 2, 0, 1.0, {}, 0, 0))
    upload, task, round = exporter.get_finished_spans()
    assert [span.name for span in (upload, task, round)] == ["upload", "task", "round"]
    assert upload.parent.span_id == task.context.span_id
    assert task.parent.span_id == round.context.span_id
    assert round.parent is None
    assert dict(upload.attributes) == {"site": "berlin", "bytes": 77}
    assert dict(task.attributes) == {"site": "berlin", "run": "r", "round": 3, "kind": "train", "failed": False}
    assert (round.attributes["sites"], round.attributes["void"]) == (2, False)
    assert upload.start_time == 1_000_000_000
    assert round.resource.attributes["insitu.federation"] == "study"


def test_what_ends_otherwise_ends_its_span_too(kept):
    traces, exporter = kept
    traces.event(events.RoundStarted("r", 1, 2))
    traces.event(events.RoundDiscarded("r", 1, "too few"))
    traces.event(events.RoundStarted("r", 2, 2))
    asked(traces, "/v1/next", Response.json(TASK))
    asked(traces, "/v1/tasks/{task}/failure")
    traces.event(events.RunStopped("r", 1, "told to"))
    found = [(span.name, dict(span.attributes)) for span in exporter.get_finished_spans()]
    assert [name for name, _ in found] == ["round", "task", "round"]
    assert (found[0][1]["reason"], found[0][1]["void"]) == ("too few", True)
    assert found[1][1]["failed"] is True


def test_without_an_endpoint_there_are_none():
    assert isinstance(traces_of("", "study"), NoTraces)
    with pytest.raises(PlanError, match="endpoint='localhost' to begin with http"):
        TracesTable(endpoint="localhost")


def test_spans_reach_a_collector():
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    bodies = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        traces = traces_of(f"http://127.0.0.1:{server.server_port}", "study")
        traces.event(events.RoundStarted("r", 3, 2))
        traces.close()
        server.shutdown()
        thread.join()
    ((path, body),) = bodies
    assert path == "/v1/traces"
    assert b"insitu.federation" in body
