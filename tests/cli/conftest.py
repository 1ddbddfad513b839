"""A small run that takes a second."""

from __future__ import annotations

import sys

import pytest

FILE = """
[run]
rounds = 4

[data]
source = "digits"
partition = { name = "dirichlet", clients = 8, alpha = 0.5 }
holdout = 0.2
test = 0.2

[learner]
name = "logistic"

[algorithm]
name = "fedavg"
lr = 0.1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a configuration in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("INSITU_TRACEBACK", raising=False)
    (tmp_path / "insitu.toml").write_text(FILE, encoding="utf-8")
    return tmp_path
