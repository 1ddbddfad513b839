"""``insitu new``, ``--version``, ``--help``, completion, and that all of it is there at once."""

from __future__ import annotations

import os
import subprocess
import tomllib
from importlib import util
from importlib.util import find_spec

import pytest
from cli_calls import ENV, call, command, done, finished

from insitu.cli import project
from insitu.version import __version__


def test_a_new_project_runs_as_it_is(folder):
    text = done("new", "hospitals")
    assert text.startswith("wrote hospitals/README.md, hospitals/data.py, hospitals/insitu.toml")
    assert "now: cd hospitals && insitu run" in text
    out = finished("run", "--rounds", "2", cwd=folder / "hospitals").stdout
    assert "finished: 2 of 2 rounds" in out
    assert "12 clients" in done("show", "--store", "hospitals/runs/insitu.db")
    assert "hospital 01" in done("partition", "hospitals/insitu.toml")


def test_without_torch_it_is_logistic_regression(folder, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name, *args: None if name == "torch" else find_spec(name, *args))
    done("new", "small")
    assert sorted(os.listdir(folder / "small")) == ["README.md", "data.py", "insitu.toml"]
    assert "model.py" not in (folder / "small" / "README.md").read_text(encoding="utf-8")
    out = done("run", "small/insitu.toml")
    assert "finished: 20 of 20 rounds" in out
    assert float(out.split()[-1]) > 0.7


def test_its_files_are_well_formed():
    for torch in (True, False):
        texts = project.files("p", torch)
        assert tomllib.loads(texts["insitu.toml"])["learner"]["name"] == ("torch" if torch else "logistic")
        for name, text in texts.items():
            if name.endswith(".py"):
                compile(text, name, "exec")
            assert all(len(line) <= 120 for line in text.splitlines())


def test_nothing_is_overwritten(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "model.py").write_text("precious", encoding="utf-8")
    result = call("new", "mine")
    assert result.exit_code == 2
    assert result.stderr == "error: mine is there already and not empty: give another name\n"
    assert os.listdir(folder / "mine") == ["model.py"]
    assert "insitu.toml is a file" in call("new", "insitu.toml").stderr
    (folder / "empty").mkdir()
    done("new", "empty")


def test_version_and_help(folder):
    assert done("--version") == f"insitu {__version__}\n"
    text = done("--help")
    for name in ("new", "run", "estimate", "runs", "show", "partition", "demo", "submit", "federation", "site"):
        assert f"\n  {name} " in text
        assert "Usage: " in done(name, "--help")
    assert call("rum").exit_code == 2
    assert "Did you mean 'run'" in call("rum").stderr


def test_the_shell_can_complete(folder):
    env = {**ENV, "_INSITU_COMPLETE": "complete_bash", "COMP_WORDS": "insitu r", "COMP_CWORD": "1"}
    result = subprocess.run(command(), env=env, capture_output=True, text=True, timeout=60)
    assert {"run", "runs"} <= set(result.stdout.split())


def test_it_is_there_at_once():
    """What makes a start slow is what it imports: the version needs none of the large libraries."""
    env = {**ENV, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command("--version"), env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "insitu" in imported
    assert not imported & {"torch", "sklearn", "scipy", "sqlalchemy", "pydantic", "matplotlib", "pandas", "aiohttp"}


def test_the_demo_gets_what_was_said(folder, monkeypatch):
    pytest.importorskip("insitu.demo")
    import insitu.demo

    seen = {}
    monkeypatch.setattr(insitu.demo, "main", lambda **given: seen.update(given))
    done("demo", "--rounds", 2, "--out", folder / "out", "--no-browser")
    assert seen == {"rounds": 2, "out": folder / "out", "browser": False}
    monkeypatch.setenv("INSITU_NO_BROWSER", "1")
    seen.clear()
    done("demo")
    assert seen == {"browser": False}
