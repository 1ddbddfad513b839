"""A profile: shares of the whole, a trace that nests, lanes counted by hand, and a run that does not notice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core import spans, wire
from insitu.core.errors import StoreError
from insitu.data.clients import Clients
from insitu.engines.processes import Processes
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner
from insitu.learners.torch.chain import replay

SIZES = (3, 5, 8, 9, 12, 20)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(sum(SIZES), 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
CLIENTS = Clients.from_arrays(X, Y, np.split(np.arange(len(X)), np.cumsum(SIZES)[:-1]))


def plan(**more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return insitu.Plan(FedAvg(lr=0.1, batch_size=4, **more), TorchLearner(net), block=3)


def run(tmp_path, engine, chosen=None):
    given = {"engine": engine, "evaluate": (X, Y), "store": tmp_path / "insitu.db", "observers": []}
    return insitu.run(chosen or plan(), CLIENTS, rounds=3, **given)


def phases(profile):
    return {row.phase: row for row in profile.rows}


@pytest.mark.parametrize("engine", ["inline", Vectorized(lanes=4), Processes(workers=2, lanes=4)])
def test_shares_add_up_to_the_whole(tmp_path, engine):
    with insitu.Profile() as profile:
        run(tmp_path, engine)
    rows = phases(profile)
    assert sum(row.seconds for row in rows.values()) == pytest.approx(profile.seconds, abs=1e-6)
    assert sum(row.share for row in rows.values()) == pytest.approx(1, abs=1e-6)
    assert sum(row.cpu_seconds for row in rows.values()) == pytest.approx(profile.cpu_seconds, abs=1e-6)
    at_work = ("start", "fold", "evaluate", "store", "other")
    here = ("idle",) if isinstance(engine, Processes) else ("data", "train")
    assert {name for name, row in rows.items() if row.seconds > 0} == {*at_work, *here}
    assert (profile.workers_cpu_seconds > 0) == isinstance(engine, Processes)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_lanes_are_counted(tmp_path, momentum):
    """Batches of 4: a client of n examples fills n of 4·⌈n/4⌉ slots; lanes of finished clients are not run along."""
    chosen = plan(optimizer="momentum" if momentum else "sgd")
    with insitu.Profile() as profile:
        run(tmp_path, Vectorized(lanes=3, compile=False), chosen)
    steps = [-(-n // 4) for n in SIZES]
    longest = max(steps[:3]) + max(steps[3:])  # two blocks of three, one a wave
    assert profile.lanes.utilisation == pytest.approx(sum(SIZES) / (4 * sum(steps)))
    assert profile.lanes.steps == 3 * longest
    assert profile.lanes.lanes == pytest.approx(sum(steps) / longest)


def test_lanes_that_stay_to_the_end_are_counted_to_the_end(tmp_path, monkeypatch):
    """Where stretches are recorded, who has finished stays: as full as they are, and not as they might be."""
    monkeypatch.setitem(replay.RECORDERS, "cpu", replay.Again)
    with insitu.Profile() as profile:
        run(tmp_path, Vectorized(lanes=3, compile=False), plan())
    steps = [-(-n // 4) for n in SIZES]
    slots = 4 * (3 * max(steps[:3]) + len(steps[3:]) * max(steps[3:]))
    assert profile.lanes.utilisation == pytest.approx(sum(SIZES) / slots)
    assert profile.lanes.utilisation < sum(SIZES) / (4 * sum(steps))


def test_no_lanes_no_figures(tmp_path):
    with insitu.Profile() as profile:
        run(tmp_path, "inline")
    assert profile.lanes is None
    assert "lanes" not in str(profile)
    assert profile.plain()["lanes"] is None


@pytest.mark.parametrize("engine", ["inline", Vectorized(lanes=4)])
def test_the_trace_nests(tmp_path, engine):
    with insitu.Profile() as profile:
        run(tmp_path, engine)
    profile.write(tmp_path / "new" / "trace.json")
    trace = json.loads((tmp_path / "new" / "trace.json").read_text(encoding="utf-8"))
    told = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {"round 1", "round 3", "evaluate round 2", "commit"} <= {event["name"] for event in told}
    rounding = 0.002  # of microseconds
    for thread in {event["tid"] for event in told}:
        under_way = []
        for event in (event for event in told if event["tid"] == thread):
            while under_way and under_way[-1] <= event["ts"] + rounding:
                under_way.pop()
            end = event["ts"] + event["dur"]
            assert not under_way or end <= under_way[-1] + rounding
            assert 0 <= event["ts"] <= end <= 1e6 * profile.seconds + rounding
            under_way.append(end)
    assert {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"} >= {"run"}


def test_a_run_has_the_same_bits_and_leaves_no_spans_outside(tmp_path):
    (tmp_path / "a").mkdir()
    with insitu.Profile() as profile:
        watched = run(tmp_path / "a", Vectorized(lanes=4))
    before = str(profile)
    alone = run(tmp_path, Vectorized(lanes=4))
    assert wire.encode(watched.state) == wire.encode(alone.state)
    assert spans.recorder() is None
    assert str(profile) == before


def test_the_table_has_every_phase(tmp_path):
    with insitu.Profile() as profile:
        run(tmp_path, Vectorized(lanes=4))
    lines = str(profile).splitlines()
    first = [line.split()[0] for line in lines]
    assert first == [
        "phase", "start", "data", "train", "fold", "evaluate", "store", "idle", "other", "all", "lanes:"
    ]  # fmt: skip
    shares = [float(line.split()[2]) for line in lines[1:9]]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_a_trace_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with insitu.Profile() as profile:
        pass
    with pytest.raises(StoreError, match="no trace can be written to"):
        profile.write(tmp_path / "file" / "trace.json")
