"""The command from end to end on a small case, and what is made of its result. No time is asserted."""

from __future__ import annotations

import copy
import json
import sys

import pytest
from typer.testing import CliRunner

from insitu.bench import processes, table
from insitu.bench.child import Child
from insitu.bench.simulate import Settings, write
from insitu.cli.main import app
from insitu.core.errors import DataError, EngineError, PlanError

LINUX = pytest.mark.skipif(not processes.PROC.is_dir(), reason="needs /proc")


def figures(wall: float, cpu: float) -> dict:
    return {
        "wall_ratio": wall, "wall_ratio_quartiles": [wall, wall], "cpu_ratio": cpu, "seconds": 0.5, "cpu_seconds": 0.4,
        "cpu_ms_per_step": 0.3, "first_round_seconds": 1.0, "start_seconds": 0.5, "peak_pss_bytes": 3e8, "loss": 2.0,
        "about": {"lanes": 16, "notices": ["a notice"]},
    }  # fmt: skip


def result(wall: float = 0.2, cpu: float = 0.3) -> dict:
    bottom = {"operations": 313600, "bytes": 31360, "products_ms": 0.01, "memory_ms": 0.0, "ms": 0.1, "gflops": 30.0}
    one = {
        "clients": 1000, "cohort": 100, "source": "normal features", "rounds": 3, "steps": 700.0, "parameters": 7850,
        "floor": bottom, "entrants": {"loop": figures(1, 1), "insitu": figures(wall, cpu)},
    }  # fmt: skip
    machine = {
        "processor": "a processor", "cores": 2, "memory_gib": 8, "load": 0.1, "system": "Linux", "python": "3.11",
        "torch": "2", "insitu": "0", "omp_num_threads": None,
    }  # fmt: skip
    return {
        "what": "simulate", "date": "2026-01-01 12:00", "machine": machine, "models": {"lr": one},
        "left_out": {"cnn": "no memory"},
    }  # fmt: skip


def test_a_result_is_read_as_it_was_written(tmp_path):
    write(result(), tmp_path / "deep" / "a.json")
    assert table.read(tmp_path / "deep" / "a.json") == result()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json is not a result"):
        table.read(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"b\.json cannot be read"):
        table.read(tmp_path / "b.json")


def test_ratios_that_grew_by_a_fifth_are_named():
    assert table.compare(result(0.23, 0.3), result(0.2, 0.3)) == []
    assert table.compare(result(0.1, 0.1), result(0.2, 0.3)) == []
    lines = table.compare(result(0.3, 0.45), result(0.2, 0.3))
    assert lines[0] == "slower: lr: wall ratio 0.30, was 0.20 on 2026-01-01 12:00 (1.50x)"
    assert lines[1].startswith("slower: lr: CPU ratio 0.45, was 0.30")


def test_models_that_were_not_measured_before_are_not_compared():
    before = copy.deepcopy(result())
    before["models"]["mlp"] = before["models"].pop("lr")
    assert table.compare(result(9, 9), before) == []


def test_markdown_has_a_row_for_each_entrant():
    lines = table.markdown(result(), "insitu bench simulate").splitlines()
    assert lines[0].startswith("2026-01-01 12:00; a processor, 2 cores")
    assert lines[0].endswith("; `insitu bench simulate`")
    cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    assert {len(row) for row in cells} == {len(table.HEADER)}
    assert [row[1].strip() for row in cells[2:]] == ["loop", "insitu"]
    assert "lr: insitu said: a notice" in lines[-2]
    assert lines[-1] == "- cnn is left out: no memory"


def test_multiples_of_the_floor():
    assert table.rows(result())[2][table.HEADER.index("x floor")] == "3.0"


def test_a_plan_that_ends_before_what_is_measured_is_refused():
    with pytest.raises(PlanError, match="planned=5 rounds end before the 13 that"):
        Settings(models=("lr",), rounds=10, warmup=2, planned=5)
    assert Settings(models=("lr",), rounds=10, warmup=2, planned=13).before("lr") == 2


def test_rounds_that_are_not_counted_are_chosen_by_model():
    with pytest.raises(PlanError, match="planned=130 rounds end before the 131 that"):
        Settings(models=("cnn", "lr"), rounds=10, planned=130)
    assert Settings(models=("lr",)).before("lr") > Settings(models=("cnn",)).before("cnn")


@LINUX
def test_a_process_that_ends_says_why():
    child = Child("peer", [sys.executable, "-c", "raise SystemExit('no such model')"])
    with pytest.raises(EngineError, match="peer ended with code 1: no such model"):
        child.__enter__()


@LINUX
def test_rounds_are_asked_for_and_counted():
    program = (
        "import json, sys\n"
        "print('{\"ready\": true}', flush=True)\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'loss': sum(json.loads(line)['cohort'])}), flush=True)\n"
    )
    with Child("peer", [sys.executable, "-c", program]) as child:
        child.round(1, [1, 2])
        assert child.answer == {"loss": 3}
        child.round(2, [4, 5], count=False)
        assert child.answer == {"loss": 9}
    assert len(child.seconds) == len(child.cpu) == 1


@LINUX
def test_the_command_measures_writes_and_compares(tmp_path):
    path = tmp_path / "a.json"
    before = result(0.0001, 0.0001)
    write(before, path)
    done = CliRunner().invoke(app, ["bench", "simulate", "--quick", "--engine", "inline", "--json", str(path)])
    assert done.exit_code == 0, done.output
    now = json.loads(path.read_text(encoding="utf-8"))
    measured = now["models"]["lr"]
    assert (measured["clients"], measured["cohort"], measured["rounds"]) == (20, 10, 2)
    ours, loop = measured["entrants"]["insitu"], measured["entrants"]["loop"]
    assert ours["about"]["engine"] == "inline"
    # The same model on the same cohorts, shuffled differently.
    assert abs(ours["loss"] - loop["loss"]) < 0.1 * loop["loss"]
    assert loop["wall_ratio"] == loop["cpu_ratio"] == 1
    assert min(ours["peak_pss_bytes"], loop["peak_pss_bytes"]) > 50e6
    assert "slower: lr: wall ratio" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "rnn"], "there is no model 'rnn'"),
        (["--set", "lanes=4"], "say which with --engine"),
        (["--engine", "vectorized", "--set", "lanes"], "expected KEY=VALUE"),
        (["--peer", "flower"], "expected NAME=PYTHON"),
        (["--peer", "nobody=python"], "there is no benchmarks/peers/nobody.py"),
    ],
)
def test_wrong_options_are_refused(arguments, said, tmp_path):
    done = CliRunner().invoke(app, ["bench", "simulate", "--json", str(tmp_path / "a.json"), *arguments])
    assert done.exit_code == 2
    assert said in done.output
