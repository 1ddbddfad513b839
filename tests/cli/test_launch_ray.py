"""``insitu launch --ray``: against a real Ray cluster on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401  # checkpoints hold tensors

from insitu.core import wire
from insitu.store.sqlite import SqliteStore

CONFIG = """
[run]
rounds = 3
seed = 3
store = "runs.db"
engine = { name = "spmd", lanes = 4, compile = false }

[data]
source = "digits"
partition = { name = "iid", clients = 4 }

[algorithm]
name = "fedavg"

[learner]
name = "torch"
module = "model.py:make"
"""
MODEL = "from torch import nn\n\n\ndef make():\n    return nn.Linear(64, 10)\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plan.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    return tmp_path


def insitu(folder: Path, *arguments: str, before: str = "", seconds: float = 100) -> subprocess.CompletedProcess[str]:
    program = f"{before}\nfrom insitu.cli.main import app\napp({list(arguments)!r}, prog_name='insitu')"
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=seconds)


def state(folder: Path) -> str:
    with SqliteStore(folder / "runs.db") as store:
        return wire.digest(store.load(store.runs()[0]["id"]).state)


@pytest.mark.long
def test_on_a_ray_cluster_it_is_the_same_run(folder):
    pytest.importorskip("ray")
    done = insitu(folder, "launch", "--ray", "local", "--workers", "2", "plan.toml", seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
    on_ray = state(folder)
    with SqliteStore(folder / "runs.db") as store:
        record = store.record(store.runs()[0]["id"])
    assert record["choices"]["ranks"] == 2
    assert record["status"] == "finished"
    assert insitu(folder, "run", "plan.toml").returncode == 0
    assert state(folder) == on_ray


def test_no_cluster_at_the_address_is_said(folder):
    pytest.importorskip("ray")
    done = insitu(folder, "launch", "--ray", "127.0.0.1:1", "plan.toml")
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster answers at '127.0.0.1:1'" in done.stderr


def test_without_ray_the_message_says_how_to_get_it(folder):
    done = insitu(folder, "launch", "--ray", "auto", "plan.toml", before="import sys; sys.modules['ray'] = None")
    assert done.returncode == 2
    assert "insitu launch --ray needs ray, which is not installed: pip install 'insitu[ray]'" in done.stderr
