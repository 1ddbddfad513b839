"""The whole, as people use it: a coordinator and two sites in processes of their own, over TLS on loopback."""

from __future__ import annotations

import json
import re
import signal
import time

import numpy as np
import pytest
from processes import SITES, Federation

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.data import Clients, sets
from insitu.learners.numpy import LogisticLearner


@pytest.fixture
def make(tmp_path):
    made = []

    def one(**options):
        made.append(Federation(tmp_path, **options))
        return made[-1]

    yield one
    for each in made:
        each.close()


def inline(rounds):
    """The same plan on the same data in this process: what the federation must come to, bit for bit."""
    found = sets.load("breast_cancer")
    owner = np.arange(len(found.x)) % 2
    population = Clients.from_arrays(found.x, found.y, [np.flatnonzero(owner == part) for part in (0, 1)], ids=SITES)
    plan = insitu.Plan(FedAvg(lr=0.1, batch_size=16), learner=LogisticLearner())
    return insitu.run(plan, population, rounds=rounds, seed=3, engine="inline", store=None, observers=[])


def same_model(federation, rounds):
    federation.call("model", "last", "--to", "model.npz", "--federation", "study")
    with np.load(federation.folder / "model.npz") as found:
        for name, value in inline(rounds).params.items():
            np.testing.assert_array_equal(found[f"shared/{name}"], value)


def sealed(federation):
    lines = federation.call("federation", "audit", "--json", "--federation", "study").splitlines()
    return [entry["data"] for entry in map(json.loads, lines) if entry["what"] == "round"]


def test_two_sites_train_what_one_machine_would(make):
    federation = make()
    federation.coordinator()
    for part, name in enumerate(SITES):
        federation.join(part, name)
        federation.site(name)
    shown = federation.call("submit", "plan.toml", "--federation", "study", "--watch")
    assert "round 4: 2 sites" in shown
    assert "finished: 4 of 4 rounds" in shown.splitlines()[-1]
    same_model(federation, 4)
    told = federation.call("status", "--federation", "study")
    assert "site berlin: waiting, heard" in told
    assert "285 examples" in told
    federation.until(lambda: len(sealed(federation)) == 4, "the audit log is written")
    rounds = sealed(federation)
    assert [one["round"] for one in rounds] == [1, 2, 3, 4]
    assert [[site for site, _ in one["accepted"]] for one in rounds] == [list(SITES)] * 4
    assert "none changed" in federation.call("site", "audit", "berlin", "--verify")
    assert federation.kill("coordinator", signal.SIGTERM) == 0
    assert federation.kill("berlin", signal.SIGTERM) == 0


def test_a_killed_coordinator_goes_on_with_the_same_round(make):
    federation = make(rounds=30)
    federation.coordinator()
    for part, name in enumerate(SITES):
        federation.join(part, name)
        federation.site(name)
    run = federation.call("submit", "plan.toml", "--federation", "study").strip()
    with federation.operator() as operator:
        federation.until(lambda: operator.run(run)["committed"] >= 3, "three rounds")
    federation.kill("coordinator")
    federation.coordinator()
    with federation.operator() as operator:
        federation.until(lambda: operator.run(run)["status"] == "finished", "the end", 60)
        kinds = [event["event"] for event in operator.events(run, 0, 0.0)[0]]
    assert kinds.count("RoundCommitted") == 30
    assert kinds.count("RunStarted") == 2
    same_model(federation, 30)


@pytest.mark.long
def test_orders_and_what_is_waited_for(make):
    federation = make(rounds=200)
    federation.coordinator()
    for part, name in enumerate(SITES):
        federation.join(part, name)
        federation.site(name)
    run = federation.call("submit", "plan.toml", "--federation", "study").strip()
    with federation.operator() as operator:
        federation.until(lambda: operator.run(run)["committed"] >= 2, "two rounds")
        assert "paused" in federation.call("pause", "--federation", "study")
        federation.until(lambda: not operator.run(run)["waiting_for"], "it rests")
        held = operator.run(run)
        time.sleep(0.5)
        assert operator.run(run)["committed"] == held["committed"]
        assert held["next"] == f"`insitu resume {run}` goes on with round {held['committed'] + 1}"
        federation.kill("paris")
        assert operator.order(run, "resume") == "queued"
        federation.until(lambda: [one["site"] for one in operator.run(run)["waiting_for"]] == ["paris"], "for paris")
        assert "waiting for paris: " in federation.call("status", run, "--federation", "study")
        federation.site("paris")
        after = held["committed"] + 2
        federation.until(lambda: operator.run(run)["committed"] >= after, "it goes on")
        assert "stop" in federation.call("stop", run, "--federation", "study")
        federation.until(lambda: operator.run(run)["status"] == "stopped", "it stops")
    listed = federation.call("runs", "--federation", "study")
    assert re.search(r"stopped +fedavg", listed)


def test_whoever_has_just_enrolled_is_known_at_once(make):
    federation = make()
    federation.coordinator()
    for i in range(5):
        token = federation.call("federation", "invite", f"anna{i}", "--role", "viewer", "--federation", "study").strip()
        federation.call("federation", "join", f"anna{i}", "--token", token)
        assert "study: led by" in federation.call("status", "--federation", f"anna{i}")
