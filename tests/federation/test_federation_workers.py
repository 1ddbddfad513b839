"""A coordinator with worker processes, real sites and operators: the same model, whatever is killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from processes import DATA, SITES, Federation, free_port

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.data import Clients, sets
from insitu.learners.numpy import LogisticLearner

ROUNDS = 30


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path, rounds=ROUNDS)
    with_workers(made.folder / "study", 2)
    yield made
    made.close()


def with_workers(folder, count, **replaced):
    path = folder / "federation.toml"
    text = f"workers = {count}\n" + path.read_text()
    for old, new in replaced.items():
        text = text.replace(old, new)
    path.write_text(text)


def children(pid):
    """The processes that this one has started and that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def alive(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in status_of(pid)]


def status_of(pid):
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ"


def free(port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def undisturbed():
    """The same plan on the same data in this process."""
    assert "breast_cancer" in DATA
    found = sets.load("breast_cancer")
    owner = np.arange(len(found.x)) % 2
    parts = [np.flatnonzero(owner == part) for part in (0, 1)]
    population = Clients.from_arrays(found.x, found.y, parts, ids=SITES)
    plan = insitu.Plan(FedAvg(lr=0.1, batch_size=16), learner=LogisticLearner())
    return insitu.run(plan, population, rounds=ROUNDS, seed=3, engine="inline", store=None, observers=[]).params


def metric(operator, name):
    text = operator.bytes("/v1/metrics").decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.mark.long
def test_the_same_model_though_a_worker_and_then_the_coordinator_are_killed(federation):
    federation.coordinator()
    coordinator = federation.running["coordinator"].pid
    federation.until(lambda: len(children(coordinator)) == 2, "two workers")
    for part, name in enumerate(SITES):
        federation.join(part, name)
        federation.site(name)
    run = federation.call("submit", "plan.toml", "--federation", "study").strip()
    with federation.operator() as operator:
        federation.until(lambda: operator.run(run)["committed"] >= 3, "three rounds", 60)
        before = children(coordinator)
        os.kill(before[0], signal.SIGKILL)
        federation.until(
            lambda: len(children(coordinator)) == 2 and before[0] not in children(coordinator), "another worker", 10
        )
        committed = operator.run(run)["committed"]
        federation.until(lambda: operator.run(run)["committed"] >= min(ROUNDS, committed + 3), "it goes on", 60)
        workers = children(coordinator)
        federation.kill("coordinator")
        federation.until(lambda: not alive(workers) and free(federation.port), "no worker is left", 2)
        federation.coordinator()
        federation.until(lambda: operator.run(run)["status"] == "finished", "the end", 90)
        assert metric(operator, "insitu_workers") == 2
        assert metric(operator, "insitu_worker_cpu_seconds_total") > 0
        federation.until(lambda: metric(operator, "insitu_connections") >= 2, "their connections are counted", 5)
        accepted = metric(operator, "insitu_port_accepted_total")
        assert accepted >= metric(operator, "insitu_connections")
    federation.call("model", "last", "--to", "model.npz", "--federation", "study")
    with np.load(federation.folder / "model.npz") as found:
        for name, value in undisturbed().items():
            np.testing.assert_array_equal(found[f"shared/{name}"], value)
    federation.call("federation", "revoke", "paris", "--federation", "study")
    federation.until(lambda: federation.running["paris"].poll() is not None, "paris is shut out", 30)
    workers = children(federation.running["coordinator"].pid)
    assert federation.kill("coordinator", signal.SIGTERM) == 0
    assert alive(workers) == []


@pytest.mark.long
def test_a_standby_has_workers_when_it_leads(federation):
    study, port = federation.folder / "study", free_port()
    other = federation.folder / "other"
    other.mkdir()
    for name in ("authority", "operator", "code"):
        (other / name).symlink_to(study / name)
    text = (study / "federation.toml").read_text()
    text = text.replace(f"port = {federation.port}", f"port = {port}")
    for name in ("federation.db", "blobs"):
        text = text.replace(f'url = "{name}"', f'url = "{study / name}"')
    (other / "federation.toml").write_text(text)
    federation.coordinator()
    leader = federation.running["coordinator"].pid
    federation.until(lambda: len(children(leader)) == 2, "the leader's workers")
    federation.start("standby", "coordinator", other)
    federation.until(lambda: "coordinator started" in (federation.folder / "standby.log").read_text(), "it stands by")
    standby = federation.running["standby"].pid
    time.sleep(3.0)
    assert children(standby) == []
    workers = children(leader)
    federation.kill("coordinator")
    federation.until(lambda: len(children(standby)) == 2, "the standby's workers", 20)
    assert alive(workers) == []
    assert federation.kill("standby", signal.SIGTERM) == 0
