"""Events as lines of JSON."""

from __future__ import annotations

import json
from datetime import datetime

import numpy as np

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core import events
from insitu.data import Clients
from insitu.learners.numpy import LogisticLearner
from insitu.observe.jsonl import JsonLines


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_event_is_a_line_as_soon_as_it_happened(tmp_path):
    path = tmp_path / "folder" / "events.jsonl"
    log = JsonLines(path)
    log(events.Notice("r1", 0, "größer\nals eine Zeile"))
    (first,) = lines_of(path)
    assert first == {
        "event": "Notice",
        "time": first["time"],
        "run": "r1",
        "round": 0,
        "text": "größer\nals eine Zeile",
    }
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0
    log(events.RunFinished("r1", 1, 2.5))
    assert lines_of(path)[1]["seconds"] == 2.5


def test_what_json_cannot_say_is_null_or_plain(tmp_path):
    log = JsonLines(tmp_path / "events.jsonl")
    metrics = {"loss": float("nan"), "accuracy": np.float64(0.5), "count": np.int64(3), "worst": np.float32("inf")}
    log(events.RoundCommitted("r1", 1, 2, 0, 0.1, metrics, 10, 20))
    (line,) = lines_of(tmp_path / "events.jsonl")
    assert line["metrics"] == {"loss": None, "accuracy": 0.5, "count": 3, "worst": None}


def test_events_are_left_as_they_are(tmp_path):
    event = events.Evaluated("r1", 1, "clients", {"loss": 1.0}, {"a": {"loss": float("inf")}})
    JsonLines(tmp_path / "events.jsonl")(event)
    assert event.clients == {"a": {"loss": float("inf")}}


def test_a_run_is_appended_to_what_is_there(tmp_path):
    clients = Clients.from_arrays([[0.0], [1.0], [0.2], [0.9]], [0, 1, 0, 1], [[0, 1], [2, 3]])
    plan = insitu.Plan(FedAvg(), learner=LogisticLearner())
    log = JsonLines(tmp_path / "events.jsonl")
    ids = [insitu.run(plan, clients, rounds=2, store=None, observers=[log]).id for _ in range(2)]
    lines = lines_of(tmp_path / "events.jsonl")
    assert list(dict.fromkeys(line["run"] for line in lines)) == ids
    kinds = [line["event"] for line in lines if line["run"] == ids[0]]
    assert kinds[0] == "RunStarted"
    assert kinds[-1] == "RunFinished"
    assert kinds.count("UpdatesArrived") == 2
    (row,) = [row for line in lines[:3] if line["event"] == "UpdatesArrived" for row in line["rows"][:1]]
    assert row[1] == 2.0
