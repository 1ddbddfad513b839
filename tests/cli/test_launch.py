"""``insitu launch`` and torchrun: real processes, which are killed, stopped, and started again."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch  # noqa: F401  # checkpoints hold tensors

from insitu.core import wire
from insitu.store.sqlite import SqliteStore

# Each starts processes that import torch, several times over; on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(600)

MODEL = '''
import time

import torch
from torch import nn


def make():
    return nn.Linear(64, 10)


def slow(output, y):
    """Cross-entropy that takes its time, so that there is a moment in which to kill."""
    time.sleep(0.04)
    return nn.functional.cross_entropy(output, y, reduction="none")
'''

CONFIG = """
[run]
rounds = {rounds}
seed = 3
store = "runs.db"
engine = {{ name = "spmd", lanes = 4, compile = false }}
block = 2
evaluate_every = 5

[data]
source = "digits"
partition = {{ name = "iid", clients = 8 }}

[algorithm]
name = "scaffold"
lr = 0.05
steps = 3

[learner]
name = "torch"
module = "model.py:make"
loss = "model.py:slow"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "plan.toml").write_text(CONFIG.format(rounds=25), encoding="utf-8")
    return tmp_path


def start(folder: Path, *arguments: str, module: str = "insitu", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def done(process: subprocess.Popen[str], status: int = 0) -> str:
    """What it said. Whatever it started ends with it."""
    try:
        out, err = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == status, f"{out}\n{err}"
    return out + err


def run_of(folder: Path) -> tuple[str, dict, list[int]]:
    """The digest of the only run's state, its record, and the rounds that were committed, in order."""
    with SqliteStore(folder / "runs.db") as store:
        (row,) = store.runs()
        checkpoint = store.load(row["id"])
        rounds = [event["round"] for event in store.events(row["id"], kinds=("RoundCommitted",))]
        return wire.digest([checkpoint.state, dict(checkpoint.memories)]), store.record(row["id"]), rounds


def committed(folder: Path) -> int:
    path = folder / "runs.db"
    if not path.exists():
        return -1
    with SqliteStore(path) as store:
        rows = store.runs()
        return rows[0]["rounds"] if rows else -1


def workers_of(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """The launcher's workers: rank → process."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    found = {}
    for pid in map(int, children):
        try:
            env = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in env:
            if entry.startswith(b"RANK="):
                found[int(entry[5:])] = pid
    return found


def wait_for(what, seconds: float = 200.0, alive: subprocess.Popen[str] | None = None):
    """What becomes true in time, while this process lives."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen"
        assert alive is None or alive.poll() is None, f"it has ended: {alive.communicate()}"
        time.sleep(0.02)
    return found


def undisturbed(folder: Path) -> str:
    """The digest of the same run in this process, on one rank: the number of ranks shows in no bit."""
    from insitu.config import load
    from insitu.run import run

    built = load(folder / "plan.toml").build()
    result = run(built.plan, built.clients, observers=[], **{**built.options, "store": None})
    return wire.digest([result.state, dict(result.memories)])


def kill_and_compare(folder, kills: int, seed: int) -> None:
    """Kills a rank at a random moment, as often as said; then the run's bits are those of the undisturbed one."""
    draw = random.Random(seed)
    launcher = start(folder, "launch", "--workers", "2", "--restarts", str(kills), "plan.toml")
    at = 0
    for kill in range(kills):
        # Only where something has been committed since the last kill, so that all of them end some day.
        at = wait_for(lambda at=at: (n := committed(folder)) > at and n, alive=launcher)
        time.sleep(draw.uniform(0, 0.3))
        ranks = wait_for(lambda: found if len(found := workers_of(launcher)) == 2 else None)
        victim = ranks[kill % 2 if kill < 2 else draw.randrange(2)]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda victim=victim: victim not in workers_of(launcher).values())
    said = done(launcher)
    assert said.count("was ended by SIGKILL") == kills
    digest, record, rounds = run_of(folder)
    assert rounds == list(range(1, len(rounds) + 1))  # none lost, none twice
    assert record["status"] == "finished"
    assert digest == undisturbed(folder)


def test_ranks_that_are_killed_cost_nothing(folder):
    (folder / "plan.toml").write_text(CONFIG.format(rounds=40), encoding="utf-8")
    kill_and_compare(folder, kills=3, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ranks_that_are_killed_twenty_times_cost_nothing(folder):
    (folder / "plan.toml").write_text(CONFIG.format(rounds=200), encoding="utf-8")
    kill_and_compare(folder, kills=20, seed=2)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_rank_that_hangs_is_dead_after_the_timeout(folder, rank):
    launcher = start(folder, "launch", "--workers", "2", "--timeout", "6", "plan.toml")
    wait_for(lambda: committed(folder) > 0)
    os.kill(workers_of(launcher)[rank], signal.SIGSTOP)
    said = done(launcher)
    assert f"rank {rank} of 2 is missing" in said
    assert "no sign of life for 6 s" in said
    assert run_of(folder)[1]["status"] == "finished"


@pytest.mark.long
def test_with_fewer_workers_it_goes_on(folder):
    launcher = start(folder, "launch", "--workers", "2", "--min-workers", "1", "plan.toml")
    wait_for(lambda: committed(folder) > 0)
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    assert "with 1 worker (" in done(launcher)
    _, record, rounds = run_of(folder)
    assert record["choices"]["ranks"] == 1
    assert rounds == list(range(1, 26))


def test_torchrun_starts_it_again(folder):
    """With --max-restarts, the restarted ranks find their run by what torchrun calls itself."""
    arguments = ("--nproc-per-node", "2", "--max-restarts", "1", "-m", "insitu", "run", "plan.toml", "--engine", "spmd")
    launcher = start(folder, *arguments, module="torch.distributed.run")
    wait_for(lambda: committed(folder) > 0)
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    done(launcher)
    _, record, rounds = run_of(folder)
    assert record["status"] == "finished"
    assert rounds == list(range(1, 26))


# ------------------------------------------------------------ what is wrong is said


def test_a_port_in_use_is_said(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} is in use" in done(start(folder, "launch", "--port", port, "plan.toml"), 2)


def test_so_it_is_by_a_rank_itself(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        assert f"port {port} of 127.0.0.1 is in use" in done(
            start(folder, "run", "--engine", "spmd", "plan.toml", **env), 2
        )


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_never_comes_is_named(folder, rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    engine = 'run.engine={ name = "spmd", timeout = 2.0 }'
    said = done(start(folder, "run", "--set", engine, "plan.toml", **env), 2)
    assert f"rank {1 - int(rank)}" in said
    assert "within 2 s (timeout=2)" in said


def test_a_bad_configuration_is_said_once_and_not_tried_again(folder):
    said = done(start(folder, "launch", "--set", "algorithm.lr=-1", "plan.toml"), 2)
    assert said.count("error:") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "workers=0"),
        (["--workers", "2", "--min-workers", "3"], "--min-workers 3 is not between 1 and"),
        (["--slurm", "--ray", "local"], "--slurm and --ray"),
        (["nowhere.toml"], "nowhere.toml is not there"),
    ],
)
def test_bad_arguments_are_refused(folder, arguments, message):
    arguments = arguments if arguments[0].endswith("toml") else [*arguments, "plan.toml"]
    assert message in done(start(folder, "launch", *arguments), 2)


def test_the_slurm_script_is_a_script(folder):
    out = done(start(folder, "launch", "--slurm", "--nodes", "3", "--workers", "4", "--set", "run.seed=5", "plan.toml"))
    (folder / "job.sh").write_text(out)
    subprocess.run(["bash", "-n", "job.sh"], cwd=folder, check=True)
    assert "#SBATCH --nodes=3" in out
    assert "--nnodes=3 --nproc-per-node=4" in out
    assert "--set run.seed=5" in out
