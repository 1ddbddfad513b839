"""A cache that may be missing, damaged or read-only, and never stands in the way."""

from __future__ import annotations

import pytest

from insitu.core import remembered


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_is_remembered_is_recalled():
    name = remembered.key(model="a", lanes=3)
    assert remembered.recall(name) is None
    remembered.remember(name, {"lanes": 8})
    assert remembered.recall(name) == {"lanes": 8}
    assert remembered.recall(remembered.key(model="b", lanes=3)) is None


def test_a_key_does_not_depend_on_the_order_of_what_it_is_about():
    assert remembered.key(a=1, b=2) == remembered.key(b=2, a=1) != remembered.key(a=2, b=1)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"x": 3}'])
def test_a_damaged_file_is_as_good_as_none(text):
    remembered.place().parent.mkdir()
    remembered.place().write_text(text)
    assert remembered.recall("x") is None
    remembered.remember("x", {"lanes": 1})
    assert remembered.recall("x") == {"lanes": 1}


def test_a_place_that_cannot_be_written_is_no_error(home, monkeypatch):
    (home / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    remembered.remember("x", {"lanes": 1})
    assert remembered.recall("x") is None


def test_the_oldest_leave():
    for i in range(remembered.MOST + 3):
        remembered.remember(f"{i}", {"lanes": i})
    assert remembered.recall("2") is None
    assert remembered.recall(f"{remembered.MOST + 2}") == {"lanes": remembered.MOST + 2}
