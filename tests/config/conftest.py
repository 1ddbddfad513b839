"""Folders with a configuration, and with code of a user's."""

from __future__ import annotations

import sys

import pytest
from config_cases import CODE, FILE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a configuration; ``sys.path`` is as before when the test is over."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "insitu.toml").write_text(FILE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def coded(folder):
    (folder / "own_data.py").write_text(CODE, encoding="utf-8")
    return folder
