"""docs/security.md names tests that show what it says: there have to be such tests."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "security.md"


def missing(page: str) -> list[str]:
    """References to tests that there are not."""
    found = re.findall(r"`([\w/]+\.py)::(\w+)`", page)
    assert len(found) > 50
    return [f"{file}::{name}" for file, name in found if not _there(TESTS / file, name)]


def _there(file: Path, name: str) -> bool:
    return file.is_file() and re.search(rf"def {name}\b", file.read_text(encoding="utf-8")) is not None


def test_every_test_on_the_page_is_there() -> None:
    assert missing(PAGE.read_text(encoding="utf-8")) == []


def test_each_row_names_one() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.count(" | ") == 3 and "`" in line]
    assert len(rows) > 20
    assert [row for row in rows if "::" not in row] == []


def test_one_that_is_not_there_is_noticed() -> None:
    page = PAGE.read_text(encoding="utf-8") + "`engines/https/test_port.py::test_nothing_of_the_kind`"
    assert "engines/https/test_port.py::test_nothing_of_the_kind" in missing(page)
