"""A site's audit log: nothing in it can be changed unseen, and no crash breaks it."""

from __future__ import annotations

import errno
import json
import os

import pytest

from insitu.federation.site_trail import SiteTrail


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def noted(path, count=5):
    trail = SiteTrail(path, "https://house:8443", lambda: 1000.0)
    for i in range(count):
        trail.note("sent", {"bytes": i})
    return trail


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_asked_by_whom_and_when(path):
    noted(path, 2)
    trail = SiteTrail(path)  # another process goes on
    trail.note("asked", {"task": "0" * 32})
    first, _, last = trail.entries()
    assert (first["who"], first["at"], first["what"], first["data"]) == (
        "https://house:8443",
        1000,
        "sent",
        {"bytes": 0},
    )
    assert last["before"] == [*trail.entries()][1]["hash"]
    assert trail.verify() is None
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_log_is_whole(path):
    assert SiteTrail(path).verify() is None
    assert list(SiteTrail(path).entries()) == []


@pytest.mark.parametrize(
    ("change", "seq"),
    [
        (lambda found: [*found[:2], found[2].replace(b'"bytes": 2', b'"bytes": 7'), *found[3:]], 3),
        (lambda found: [*found[:2], *found[3:]], 4),
        (lambda found: found[1:], 2),
        (lambda found: [found[1], found[0], *found[2:]], 2),
        (lambda found: [*found[:2], b"{}\n", *found[3:]], 4),
        (lambda found: [*found[:2], b"5\n", *found[3:]], 4),
        (lambda found: [*found, found[-1]], 5),
    ],
)
def test_what_was_changed_is_named(path, change, seq):
    noted(path)
    path.write_bytes(b"".join(change(lines(path))))
    broken = SiteTrail(path).verify()
    assert broken is not None
    assert broken.seq == seq


@pytest.mark.parametrize("cut", [1, 40, 10**6])
def test_a_torn_line_is_cut_off_and_the_log_goes_on(path, cut):
    noted(path, 3)
    torn = lines(path)[-1][:-1] if cut == 1 else (b"x" * 200_000 if cut == 10**6 else lines(path)[-1][:cut])
    whole = lines(path)
    path.write_bytes(b"".join(whole[:2]) + torn)  # the crash came in the middle of the third
    trail = SiteTrail(path)
    assert trail.verify() is None
    count = len(list(trail.entries()))
    trail.note("again", {})
    found = list(SiteTrail(path).entries())
    assert trail.verify() is None
    assert found[-1]["what"] == "again"
    assert [entry["seq"] for entry in found] == list(range(1, len(found) + 1))
    assert len(found) >= count


def test_what_could_not_be_written_is_not_there(path, monkeypatch):
    trail = noted(path, 2)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            trail.note("lost", {})
    trail.note("kept", {})
    assert [entry["what"] for entry in trail.entries()] == ["sent", "sent", "kept"]
    assert trail.verify() is None
    assert json.loads(lines(path)[-1])["seq"] == 3
