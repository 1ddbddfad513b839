"""``insitu run --profile`` and ``insitu estimate``: tables, files, and what is not there afterwards."""

from __future__ import annotations

import json

from cli_calls import call, done

from insitu.cli.estimate import duration
from insitu.store.sqlite import SqliteStore


def test_a_profile_is_a_table_and_a_trace(folder):
    out = done("run", "--rounds", 2, "--profile")
    summary, _, head, *rows = out.splitlines()
    run = summary.split()[0]
    assert summary.startswith(f"{run} finished: 2 of 2 rounds")
    assert head.split() == ["phase", "seconds", "share", "CPU"]
    assert [row.split()[0] for row in rows[:3]] == ["start", "data", "train"]
    trace = json.loads((folder / "runs" / f"{run}.trace.json").read_text(encoding="utf-8"))
    assert {"round 1", "round 2"} <= {event["name"] for event in trace["traceEvents"]}


def test_the_trace_goes_where_it_is_wanted(folder):
    assert "phase" in done("run", "--rounds", 1, "--trace", "here/trace.json")
    assert json.loads((folder / "here" / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert not list(folder.glob("runs/*.json"))
    assert "phase" not in done("run", "--rounds", 1)


def test_an_estimate_leaves_no_run(folder):
    found = json.loads(done("estimate", "--rounds", 3, "--json"))
    assert not (folder / "runs").exists()
    done("run", "--rounds", 3)
    with SqliteStore(folder / "runs" / "insitu.db") as store:
        (run,) = store.runs()
        rounds = store.events(run["id"], kinds=["RoundCommitted"])
    assert found["bytes_up"] == sum(event["bytes_up"] for event in rounds)
    assert found["bytes_down"] == sum(event["bytes_down"] for event in rounds)
    assert (found["rounds"], found["evaluations"]) == (3, 3)
    assert found["seconds"] > found["start"]["seconds"] > 0


def test_an_estimate_as_a_table(folder):
    out = done("estimate", "insitu.toml", "--rounds", 3, "--engine", "inline", "--set", "run.evaluate_every=2")
    assert "3 rounds, engine inline; from 3 measured" in out
    for said in ("start and end", "3 rounds", "2 evaluations", "peak memory", "sent up", "sent down"):
        assert said in out


def test_bad_input_is_one_line(folder):
    for args, said in (
        (["estimate", "nowhere.toml"], "error: nowhere.toml cannot be read"),
        (["estimate", "--rounds", 0], "error: insitu.toml, [run]: Expected rounds=0"),
    ):
        result = call(*args)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(said)


def test_durations_are_said_as_people_say_them():
    said = {0.4236: "0.42 s", 37.4: "37 s", 250.2: "4 min 10 s", 7500: "2 h 5 min"}
    assert {seconds: duration(seconds) for seconds in said} == said
