"""The page about the command line: its files are configurations, its programs run."""

from __future__ import annotations

import os
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from config_cases import CODE, FILE, NET

from insitu.config import load, of_tables

DOCS = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_the_pages_programs_run(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(program, DOCS.name, "exec"), {})
    assert len(os.listdir(tmp_path)) == 1


BLOCKS = re.findall(r"^```toml\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_pages_examples_are_configurations(block, folder):
    """Each is a whole file, or tables that replace those of one."""
    if find_spec("torch") is None and "torch" in block:
        pytest.skip("needs torch")
    (folder / "model.py").write_text(NET, encoding="utf-8")
    (folder / "data.py").write_text(CODE.replace("def arrays", "load = lambda n=60: arrays(n)\ndef arrays"), "utf-8")
    config = of_tables({**tomllib.loads(FILE), **tomllib.loads(block)}, (), load(folder / "insitu.toml").place)
    config.plan()
    config.engine()
