"""What docs/operations.md says of backups: a copy that is made while the coordinator works opens as it was then."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from insitu.core.federation import Member
from insitu.store.ledger.sqlite import SqliteLedger

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def names(path: Path) -> list[str]:
    ledger = SqliteLedger(path)
    try:
        return sorted(member.name for member in ledger.members())
    finally:
        ledger.close()


def test_a_copy_made_meanwhile_is_whole(tmp_path: Path) -> None:
    (statement,) = re.findall(r"VACUUM INTO '/backup/federation\.db'", PAGE.read_text(encoding="utf-8"))
    path, copy = tmp_path / "federation.db", tmp_path / "copy.db"
    ledger = SqliteLedger(path)
    try:
        assert ledger.lead("one", 60.0)
        ledger.add_member(Member("berlin", "site", "01", 1.0))
        with sqlite3.connect(path) as other:
            other.execute(statement.replace("/backup/federation.db", str(copy)))
        other.close()
        ledger.add_member(Member("paris", "site", "02", 2.0))
    finally:
        ledger.close()
    assert names(copy) == ["berlin"]
    assert names(path) == ["berlin", "paris"]


def test_a_plain_copy_of_the_file_would_lack_what_is_in_its_log(tmp_path: Path) -> None:
    """Why the page says so: this is what is lost."""
    path, copy = tmp_path / "federation.db", tmp_path / "copy.db"
    ledger = SqliteLedger(path)
    try:
        assert ledger.lead("one", 60.0)
        ledger.add_member(Member("berlin", "site", "01", 1.0))
        copy.write_bytes(path.read_bytes())
    finally:
        ledger.close()
    try:
        found = names(copy)
    except Exception as error:  # not even a database, as all of it was in the log
        found = [type(error).__name__]
    assert found != ["berlin"]


def test_the_restored_coordinator_leads_when_the_lease_in_the_backup_has_run_out(tmp_path: Path) -> None:
    now = [1000.0]
    path, copy = tmp_path / "federation.db", tmp_path / "copy.db"
    ledger = SqliteLedger(path, clock=lambda: now[0])
    try:
        assert ledger.lead("first machine", 6.0)
        with sqlite3.connect(path) as other:
            other.execute(f"VACUUM INTO '{copy}'")
        other.close()
    finally:
        ledger.close()
    restored = SqliteLedger(copy, clock=lambda: now[0])
    try:
        assert not restored.lead("second machine", 6.0)
        now[0] += 7.0
        assert restored.lead("second machine", 6.0)
    finally:
        restored.close()
