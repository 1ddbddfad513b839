"""The ledger in a file: killed at its commits, on a disk that is full, and as quick as a round needs it."""

import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing

import pytest
import sqlalchemy

from insitu.core.audit import verify
from insitu.core.errors import DiskFull, Fenced, StoreError
from insitu.core.federation import Call, CallKey, Entry
from insitu.store.ledger.sqlite import SqliteLedger
from insitu.store.opened import AT_ONCE, open_blobs, open_ledger, open_store
from insitu.store.sqlite import SqliteStore

KEY = CallKey("a-run", 1, "train", 0)
KILLED = """
import os, signal, sys
from insitu.core import failpoints
from insitu.core.federation import Call, CallKey, Entry
from insitu.store.ledger.sqlite import SqliteLedger

path, name = sys.argv[1:]
key = CallKey("a-run", 1, "train", 0)
ledger = SqliteLedger(path)
ledger.lead("one", 60.0)
ledger.open_call(Call(key, ["north"], {"": "a" * 64}, 1.0))
failpoints.hit = lambda at: at == name and os.kill(os.getpid(), signal.SIGKILL)
ledger.append(key, [Entry(i, "accepted", f"site-{i}", 0.5) for i in range(20)])
"""


@pytest.mark.parametrize(("name", "there"), [("ledger.commit.before", 0), ("ledger.commit.after", 20)])
def test_kill_9_at_a_commit_leaves_all_or_nothing_of_it(tmp_path, name, there):
    path = tmp_path / "ledger.db"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), name])
    assert done.returncode == -signal.SIGKILL
    with SqliteLedger(path) as ledger:
        assert len(ledger.calls("a-run")[0].entries) == there
        assert ledger.lead("one", 60.0)
        ledger.append(KEY, [Entry(there, "accepted", "east", 0.5)])


def test_a_full_disk_is_told_apart_and_nothing_is_half_there(tmp_path):
    pages = {"most": 10**9}

    def on_connect(connection, _):
        connection.execute(f"PRAGMA max_page_count = {pages['most']}")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", on_connect)
    try:
        with SqliteLedger(tmp_path / "ledger.db") as ledger:
            ledger.open_call(Call(KEY, ["north"], {"": "a" * 64}, 1.0))
            ledger.close()
            pages["most"] = 1  # SQLite takes what there is for the least
            many = [Entry(i, "accepted", f"site-{i}", 0.5, {"manifest": "x" * 1000}) for i in range(100)]
            with pytest.raises(DiskFull, match=r"free some space on its disk. Nothing in it has changed"):
                ledger.append(KEY, many)
            assert ledger.calls("a-run")[0].entries == []
            pages["most"] = 10**9
            ledger.close()
            ledger.append(KEY, many)
            assert len(ledger.calls("a-run")[0].entries) == 100
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", on_connect)


def test_a_simulations_clock_stands_for_the_files_own(tmp_path):
    now = [100.0]
    ledgers = [SqliteLedger(tmp_path / "ledger.db", clock=lambda: now[0]) for _ in range(2)]
    one, other = ledgers
    assert one.lead("one", 10.0)
    assert one.leader() == ("one", 10.0)
    now[0] = 109.5
    assert not other.lead("other", 10.0)
    now[0] = 110.0
    assert other.leader() is None
    assert not other.lead("other", 10.0)  # seen for the first time half a second ago: clocks jump
    now[0] = 114.5
    assert other.lead("other", 10.0)
    with pytest.raises(Fenced):
        one.audit([{"at": 1.0, "what": "x"}])
    for ledger in ledgers:
        ledger.close()


def test_the_trail_in_the_file_shows_what_was_changed_in_it(tmp_path):
    path = tmp_path / "ledger.db"
    with SqliteLedger(path) as ledger:
        ledger.audit({"at": float(i), "who": "ada", "what": f"thing {i}", "data": {"n": i / 3}} for i in range(10))
        assert verify(ledger.audited()) is None
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE audit SET who = 'eve' WHERE seq = 7")
            connection.commit()
        assert verify(ledger.audited()).seq == 7


def test_an_entry_takes_some_milliseconds_and_many_together_not_much_more(tmp_path):
    with SqliteLedger(tmp_path / "ledger.db") as ledger:
        assert ledger.lead("one", 600.0)
        ledger.open_call(Call(KEY, ["north"], {"": "a" * 64}, 1.0))
        seconds = []
        for seq in range(50):
            start = time.perf_counter()
            ledger.append(KEY, [Entry(seq, "accepted", f"site-{seq}", 0.5, {"manifest": "a" * 64, "bytes": 1})])
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        ledger.append(
            KEY, [Entry(seq, "accepted", f"site-{seq}", 0.5, {"manifest": "a" * 64}) for seq in range(50, 1050)]
        )
        together = time.perf_counter() - start
    assert statistics.median(seconds) < 0.02
    assert together < 1.0


# ------------------------------------------------------------ what a user writes


def test_a_path_and_a_url_name_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_store("runs.db", behind=AT_ONCE) as store:
        store.create("a-run", {"seed": 3})
    for place in ("sqlite:///runs.db", f"sqlite:///{tmp_path}/runs.db", tmp_path / "runs.db"):
        with open_ledger(place) as ledger, open_store(place, ledger=ledger) as store:
            assert store.record("a-run")["seed"] == 3
    with pytest.raises(StoreError, match="no database that insitu knows: give a file's path"):
        open_ledger("sqlite://")
    assert open_blobs(tmp_path / "blobs").length("0" * 64) is None


def test_runs_and_ledger_share_one_file(tmp_path):
    path = tmp_path / "all.db"
    with SqliteLedger(path) as ledger, SqliteStore(path, behind=AT_ONCE, fence=ledger.fence) as store:
        assert ledger.lead("one", 60.0)
        store.create("a-run", {})
        ledger.open_call(Call(KEY, ["north"], {"": "a" * 64}, 1.0))
        store.update("a-run", status="stopped")
        assert ledger.calls("a-run")[0].key == KEY
