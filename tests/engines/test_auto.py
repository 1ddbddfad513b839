"""The engine that is taken where none is named: it moves to workers when that pays, and the bits do not show it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.data.clients import Clients
from insitu.engines.auto import Auto, session
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner


def clients(n=12, d=20):
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 30, n)
    x = rng.standard_normal((sizes.sum(), d)).astype(np.float32)
    return Clients.from_arrays(x, (x[:, 0] > 0).astype(int), np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1]))


def plan(**more):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 2))
    return insitu.Plan(FedAvg(lr=0.1, batch_size=5), learner=TorchLearner(net), evaluate_every=0, **more)


def same(a, b):
    return all(torch.equal(x, b.variables.shared[name]) for name, x in a.variables.shared.items())


@pytest.fixture
def eager(monkeypatch, tmp_path):
    """Workers that are thought to cost nothing, on a machine with two cores."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(session, "START", 0.0)
    monkeypatch.setattr(session, "UNEVEN", 1.0)
    monkeypatch.setattr(session, "usable_cores", lambda: 2)


def wait_for_workers(run):
    """An observer that goes on with the third round when workers are up: a run of milliseconds would be over before."""

    def observe(event):
        if type(event).__name__ == "RoundCommitted" and event.round == 3:
            run[0]._starting.join()

    return observe


def moved(monkeypatch, rounds, **more):
    made = []
    start = session.AutoSession.__init__

    def kept(self, setting):
        made.append(self)
        start(self, setting)

    monkeypatch.setattr(session.AutoSession, "__init__", kept)
    return insitu.run(plan(), clients(), rounds=rounds, observers=[wait_for_workers(made)], **more)


def test_a_run_that_moves_to_workers_gives_the_bits_of_lanes(eager, monkeypatch):
    result = moved(monkeypatch, 8, store=None)
    assert result.choices["engine"] == "auto"
    assert result.choices["workers"] == 2
    lanes = Vectorized(lanes=result.choices["lanes"], compile=False, device="cpu")
    assert same(result, insitu.run(plan(), clients(), rounds=8, engine=lanes, store=None, observers=[]))


def test_a_resumed_run_goes_on_with_what_was_chosen(eager, monkeypatch, tmp_path):
    result = moved(monkeypatch, 5, store=tmp_path / "runs.db")
    monkeypatch.undo()
    again = insitu.run(plan(), clients(), rounds=8, store=tmp_path / "runs.db", resume=result.id, observers=[])
    assert again.choices["workers"] == 2
    assert again.choices["lanes"] == result.choices["lanes"]
    lanes = Vectorized(lanes=again.choices["lanes"], compile=False, device="cpu")
    assert same(again, insitu.run(plan(), clients(), rounds=8, engine=lanes, store=None, observers=[]))


def test_a_short_run_starts_no_workers(monkeypatch):
    monkeypatch.setattr(session, "usable_cores", lambda: 2)
    monkeypatch.setattr(session, "ProcessesSession", None)
    monkeypatch.setattr(session.AutoSession, "_start", lambda self: pytest.fail("workers were started"))
    result = insitu.run(plan(), clients(), rounds=3, store=None, observers=[])
    assert result.choices["workers"] == 1


def test_clients_that_cannot_be_sent_stay_here(eager):
    rng = np.random.default_rng(0)
    made = Clients.lazy(range(12), lambda i: (rng.standard_normal((5, 20)).astype(np.float32), np.arange(5) % 2))
    heard = []
    result = insitu.run(plan(), made, rounds=30, store=None, observers=[heard.append], engine=Auto())
    assert result.history[-1]["clients"] == 12


def test_a_method_without_gradients_runs_inline():
    from insitu.algorithms.kmeans import KMeans

    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    data = Clients.from_arrays(x, np.zeros(60, int), np.split(np.arange(60), 6))
    result = insitu.run(insitu.Plan(KMeans(k=2)), data, rounds=2, store=None, observers=[])
    assert result.choices["inner"] == "inline"
