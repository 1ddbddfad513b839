"""Rounds in real time from the command line: killed, gone on with, and done over again to the bit."""

from __future__ import annotations

import os
import signal

import pytest
from test_launch import MODEL, committed, done, start, wait_for, workers_of

from insitu.core import wire
from insitu.store.sqlite import SqliteStore

# Each starts processes that import torch, several times over; on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(600)

CONFIG = """
[run]
rounds = {rounds}
seed = 3
store = "runs.db"
engine = {engine}
evaluate_every = 10

[data]
source = "digits"
partition = {{ name = "iid", clients = 6 }}

[algorithm]
name = "scaffold"
lr = 0.05
steps = 3

[buffered]
size = 2
clock = "real"

[learner]
name = "torch"
module = "model.py:make"
loss = "model.py:slow"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    return tmp_path


def configure(folder, engine, rounds=25):
    (folder / "plan.toml").write_text(CONFIG.format(rounds=rounds, engine=engine), encoding="utf-8")


def became(folder):
    """By run, oldest first: the digest of its state and memories, its status, and the rounds of its record."""
    found = []
    with SqliteStore(folder / "runs.db") as store:
        for row in reversed(store.runs()):
            checkpoint = store.load(row["id"])
            rounds = [event["round"] for event in store.events(row["id"], kinds=("Arrivals",))]
            digest = wire.digest([checkpoint.state, dict(checkpoint.memories)])
            found.append((digest, store.record(row["id"])["status"], rounds))
    return found


def replayed(folder, rounds=25):
    """Once more, by one process."""
    said = done(start(folder, "run", "plan.toml", "--replay", "last", "--engine", "inline"))
    assert f"finished: {rounds} of {rounds} rounds" in said
    (digest, status, arrived), (again, status_again, arrived_again) = became(folder)
    assert (status, status_again) == ("finished", "finished")
    assert arrived == arrived_again == list(range(1, rounds + 1))  # none lost, none twice
    assert digest == again


def test_a_run_on_ranks_that_is_killed_goes_on(folder):
    configure(folder, '{ name = "spmd", compile = false }')
    launcher = start(folder, "launch", "--workers", "3", "--restarts", "2", "plan.toml")
    for rank in (1, 0):
        at = committed(folder)
        wait_for(lambda at=at: committed(folder) > max(at, 0), alive=launcher)
        ranks = wait_for(lambda: found if len(found := workers_of(launcher)) == 3 else None, alive=launcher)
        os.kill(ranks[rank], signal.SIGKILL)
        wait_for(lambda gone=ranks[rank]: gone not in workers_of(launcher).values())
    said = done(launcher)
    assert said.count("was ended by SIGKILL") == 2
    assert "rank 0 serves, the other 2 ranks work" in said
    replayed(folder)


def test_a_run_in_workers_that_is_killed_goes_on(folder):
    configure(folder, '{ name = "processes", workers = 3 }')
    first = start(folder, "run", "plan.toml")
    wait_for(lambda: committed(folder) > 3, alive=first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    done(start(folder, "run", "plan.toml", "--resume", "last"))
    replayed(folder)


def test_what_cannot_be_replayed_is_said(folder):
    configure(folder, '"inline"', rounds=2)
    assert "runs.db" in done(start(folder, "run", "plan.toml", "--replay", "last"), 2)
    done(start(folder, "run", "plan.toml"))
    said = done(start(folder, "run", "plan.toml", "--replay", "last", "--rounds", "3"), 2)
    assert "has 2 rounds to be replayed, not 3: give rounds=2" in said
    said = done(start(folder, "run", "plan.toml", "--replay", "last", "--set", "run.store=false"), 2)
    assert "--replay last needs the store that holds the run" in said
    said = done(start(folder, "run", "plan.toml", "--replay", "last", "--resume", "last"), 2)
    assert "--resume last goes on with a replay by itself" in said
