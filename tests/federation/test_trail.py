"""Notes for the audit log reach the ledger, in order, and once."""

from __future__ import annotations

import pytest

from insitu.core import audit
from insitu.core.errors import StoreError
from insitu.federation import trail
from insitu.federation.trail import Trail
from insitu.store.opened import open_ledger


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(tmp_path / "federation.db") as opened:
        yield opened


def test_notes_reach_the_ledger_in_order(ledger):
    notes = Trail(ledger, lambda *a, **k: None, lambda: 5.0)
    notes.start()
    for i in range(1200):
        notes.note("berlin", "update", {"number": i})
    notes.close()
    found = ledger.audited(0, 2000)
    assert [entry["data"]["number"] for entry in found] == list(range(1200))
    assert audit.verify(found) is None


def test_what_cannot_be_written_is_tried_again(ledger, monkeypatch):
    said = []
    notes = Trail(ledger, lambda level, event, **fields: said.append(event))
    notes.note("berlin", "update", {})
    real = ledger.audit

    def full(entries):
        raise StoreError("the disk is full")

    monkeypatch.setattr(ledger, "audit", full)
    notes.close()
    assert said == ["the audit log waits"]
    monkeypatch.setattr(ledger, "audit", real)
    notes.close()
    assert len(ledger.audited()) == 1


def test_too_many_lose_the_oldest_and_say_so(ledger, monkeypatch):
    monkeypatch.setattr(trail, "MOST", 3)
    said = []
    notes = Trail(ledger, lambda level, event, **fields: said.append(event))
    for i in range(5):
        notes.note("berlin", "update", {"number": i})
    notes.close()
    assert [entry["data"]["number"] for entry in ledger.audited()] == [2, 3, 4]
    assert said == ["an audit entry is lost"] * 2
