"""``insitu run``: runs, changes, errors, and what a killed run leaves."""

from __future__ import annotations

import json
import signal
import sqlite3
import time

from cli_calls import call, done, finished, started

from insitu.store.sqlite import SqliteStore


def runs_in(path):
    with SqliteStore(path) as store:
        return store.runs()


def test_a_run_is_one_line_on_stdout_and_in_the_store(folder):
    out = done("run")
    (run,) = runs_in(folder / "runs" / "insitu.db")
    assert out.startswith(f"{run['id']} finished: 4 of 4 rounds, loss ")
    assert ", accuracy 0." in out
    assert out.count("\n") == 1
    assert run["metrics"]["central"]["accuracy"] > 0.5


def test_flags_and_changes(folder):
    changes = ["--set", "algorithm.name=fedprox", "--set", "algorithm.mu=0.5", "--rounds", 2, "--engine", "inline"]
    done("run", "insitu.toml", *changes, "--store", folder / "other.db", "--events", "events.jsonl")
    (run,) = runs_in(folder / "other.db")
    assert (run["rounds"], run["config"]["algorithm"]["mu"]) == (2, 0.5)
    with SqliteStore(folder / "other.db") as store:
        assert store.record(run["id"])["engine"] == {"name": "inline"}
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["event"] == "RunFinished"


def test_paths_in_the_file_are_relative_to_it_and_flags_to_us(folder):
    (folder / "sub").mkdir()
    (folder / "insitu.toml").rename(folder / "sub" / "insitu.toml")
    done("run", "sub/insitu.toml", "--rounds", 1)
    assert (folder / "sub" / "runs" / "insitu.db").is_file()
    done("run", "sub/insitu.toml", "--rounds", 1, "--store", "here.db")
    assert (folder / "here.db").is_file()
    done("run", "sub/insitu.toml", "--rounds", 1, "--set", "run.store=false")
    assert len(runs_in(folder / "here.db")) == 1


def test_more_rounds_for_a_run_that_is_done(folder):
    changes = ["--set", "algorithm.lr=0.2", "--rounds", 2]
    done("run", *changes)
    # The changes it was started with are remembered; another number of rounds is what one resumes for.
    out = done("run", "--resume", "last", "--rounds", 5)
    assert "finished: 5 of 5 rounds" in out
    (run,) = runs_in(folder / "runs" / "insitu.db")
    assert (run["rounds"], run["config"]["algorithm"]["lr"]) == (5, 0.2)
    assert "5 of 5 rounds" in done("show")
    assert "finished: 5 of 5" in done("run", "--resume", run["id"][:-2], "--store", "runs/insitu.db")


def test_errors_are_one_line(folder):
    for args, said in (
        (["run", "nowhere.toml"], "error: nowhere.toml cannot be read: No such file or directory"),
        (["run", "--set", "algorithm.lrs=1"], "error: insitu.toml, [algorithm]: fedavg has no key 'lrs': did you mean"),
        (["run", "--set", "algorithm.lr=high"], "error: insitu.toml, [algorithm.lr]: there is no schedule 'high'"),
        (["run", "--rounds", "0"], "error: insitu.toml, [run]: Expected rounds=0 to be a whole number >= 1"),
        (["run", "--resume", "last"], "error: there is no store at"),
        (["run", "--resume", "last", "--set", "run.store=false"], "error: --resume last needs the store"),
    ):
        result = call(*args)
        assert result.exit_code == 2
        assert result.stderr.startswith(said)
        assert result.stderr.count("\n") == 1
    assert not (folder / "runs").exists()  # nothing was run, so that there is nothing to keep


def test_resuming_another_plan_is_refused(folder):
    done("run", "--rounds", 1)
    result = call("run", "--resume", "last", "--set", "algorithm.lr=0.3")
    assert result.exit_code == 2
    assert "was made by another plan (algorithm.lr was 0.1, is 0.3)" in result.stderr
    assert "the nearest of its 1 is" in call("run", "--resume", "nothing").stderr


def test_the_whole_traceback_where_it_is_wanted(folder, monkeypatch):
    for place in (["--traceback", "run", "no.toml"], ["run", "no.toml", "--traceback"]):
        result = call(*place)
        assert result.exit_code == 2
        assert "Traceback (most recent call last)" in result.stderr
        assert "ConfigError: no.toml cannot be read" in result.stderr
    monkeypatch.setenv("INSITU_TRACEBACK", "1")
    assert "Traceback" in call("run", "no.toml").stderr


LONG = ["--rounds", 100_000, "--set", "run.evaluate_every=0"]


def until(condition, process, seconds=60.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.05)


def durable_rounds(path):
    """How many rounds are on disk, asked of the file itself."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT max(rounds) FROM runs").fetchone()[0] or 0
    except sqlite3.OperationalError:
        return 0


def test_a_killed_run_goes_on_as_if_nothing_had_happened(folder):
    path = folder / "runs" / "insitu.db"
    with started("run", *LONG, cwd=folder) as process:
        until(lambda: durable_rounds(path) > 0, process)
        process.kill()
    reached = durable_rounds(path)
    wanted = reached + 20
    out = finished("run", "--resume", "last", "--rounds", wanted, cwd=folder).stdout
    assert f"finished: {wanted} of {wanted} rounds" in out
    done("run", "--rounds", wanted, "--set", "run.evaluate_every=0", "--store", "straight.db")
    with SqliteStore(path) as one, SqliteStore(folder / "straight.db") as other:
        killed, straight = (store.load(store.runs()[0]["id"]) for store in (one, other))
    assert killed.round == straight.round == wanted
    for name, value in straight.state["shared"].items():
        assert (killed.state["shared"][name] == value).all()


def test_ctrl_c_stops_after_a_round(folder):
    path = folder / "runs" / "insitu.db"
    with started("run", *LONG, cwd=folder) as process:
        until(lambda: durable_rounds(path) > 0, process)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this round" in said
    assert "to go on: " in said
    (run,) = runs_in(path)
    assert run["status"] == "stopped"
    assert out.startswith(f"{run['id']} stopped: {run['rounds']} of 100000 rounds")
