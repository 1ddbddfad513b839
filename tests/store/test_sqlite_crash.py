"""Killed at any moment or out of space, the file opens and holds whole rounds, and the run goes on."""

import json
import random
import runpy
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy

from insitu.core import wire
from insitu.core.errors import StoreError
from insitu.core.events import RoundStarted
from insitu.core.protocols import Checkpoint
from insitu.store.sqlite import SqliteStore

SCRIPT = Path(__file__).with_name("commit_forever.py")
forever = runpy.run_path(str(SCRIPT))
AT_ONCE = timedelta(0)


def query(path, sql):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def assert_whole(path, run, at_least):
    """The newest checkpoint is a round's own, and events, metrics and memories end exactly there."""
    with SqliteStore(path) as store:
        found = store.load(run)
        round = found.round if found else 0
        assert round >= at_least
        if found:
            assert wire.digest(found.state) == wire.digest(forever["state_at"](round))
            assert wire.digest(dict(found.memories)) == wire.digest(forever["memories_after"](round))
        events = store.events(run)
        assert len(events) == 7 * round
        assert [event["round"] for event in events] == [r for r in range(1, round + 1) for _ in range(7)]
    counts = query(path, "SELECT count(*), max(round) FROM client_metrics")
    assert counts == [(10 * round, round or None)]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    return round


def run_and_kill(path, behind, rng):
    """Lets the script commit some rounds, kills it in the midst of one, and returns the last it said was done."""
    command = [sys.executable, str(SCRIPT), str(path), "a-run", str(behind)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        said = ""
        for _ in range(rng.randint(1, 25)):
            said = child.stdout.readline() or said
        try:
            child.wait(timeout=rng.random() * 0.02)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().rpartition("\n")[0]
    assert child.returncode == -signal.SIGKILL
    return int((said + rest).split()[-1])


@pytest.mark.parametrize("behind", [0, 0.02])
def test_kill_9_leaves_whole_rounds(tmp_path, behind):
    kill_again_and_again(tmp_path / "runs.db", behind, times=3)


@pytest.mark.long
@pytest.mark.parametrize("behind", [0, 0.02])
def test_kill_9_many_times_leaves_whole_rounds(tmp_path, behind):
    kill_again_and_again(tmp_path / "runs.db", behind, times=40)


def kill_again_and_again(path, behind, times):
    rng = random.Random(times)
    durable = 0
    for _ in range(times):
        said = run_and_kill(path, behind, rng)
        # With nothing held back, a round is on disk when commit returns; a second's worth may be lost otherwise.
        durable = assert_whole(path, "a-run", said if behind == 0 else durable)


FULL_DISK = """
import json, resource, runpy, sys
from datetime import timedelta
import numpy as np
from insitu.core.errors import StoreError
from insitu.core.protocols import Checkpoint
from insitu.store.sqlite import SqliteStore

script, path = sys.argv[1:]
forever = runpy.run_path(script)
store = SqliteStore(path, behind=timedelta(0))
store.create("a-run", {"seed": 0})
for round in (1, 2, 3):
    forever["one_round"](store, "a-run", round)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
# Less than a round takes, so that moving the log into the file makes no room for another one either.
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, most))
told = []
for round in (4, 5):
    try:
        forever["one_round"](store, "a-run", round)
    except StoreError as error:
        told.append(str(error))
try:
    store.update("a-run", status="failed")
except StoreError as error:
    told.append(str(error))
print(json.dumps(told), flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
if sys.stdin.readline() == "go on\\n":
    forever["one_round"](store, "a-run", 6)
    store.close()
    print("done", flush=True)
"""


@pytest.mark.parametrize("then", ["go on", "die"])
def test_a_file_that_may_grow_no_further_stays_whole_and_usable(tmp_path, then):
    path = tmp_path / "runs.db"
    command = [sys.executable, "-c", FULL_DISK, str(SCRIPT), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        told = json.loads(child.stdout.readline())
        assert query(path, "SELECT round FROM checkpoints") == [(3,)]
        assert query(path, "SELECT max(round), count(*) FROM events") == [(3, 21)]
        assert query(path, "SELECT rounds, status FROM runs") == [(3, "running")]
        child.stdin.write(f"there is space again\n{then}\n")
        child.stdin.flush()
        assert child.stdout.readline() == ("done\n" if then == "go on" else "")
    assert len(told) == 3
    for message in told:
        assert str(path) in message
        assert "check its disk" in message or "free some space" in message
        assert "run 'a-run' is durable up to round 3" in message
    assert_whole(path, "a-run", at_least=6 if then == "go on" else 3)


@pytest.fixture
def page_limit():
    """Makes SQLite itself say 'database or disk is full': connections get at most ``limit["pages"]`` pages."""
    limit = {"pages": 10**9}

    def on_connect(connection, _):
        connection.execute(f"PRAGMA max_page_count = {limit['pages']}")
        limit["connection"] = connection

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", on_connect)
    yield limit
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", on_connect)


def test_a_full_disk_names_round_and_cure_and_loses_nothing(tmp_path, page_limit):
    store = SqliteStore(tmp_path / "runs.db", behind=AT_ONCE)
    store.create("a-run", {})
    store.commit("a-run", Checkpoint(1, {"w": np.zeros(10)}, {}, {}))
    page_limit["pages"] = 60
    page_limit["connection"].execute("PRAGMA max_page_count = 60")
    for round in (2, 3):
        store.event("a-run", RoundStarted("a-run", round, 1))
        with pytest.raises(StoreError) as caught:
            store.commit("a-run", Checkpoint(round, {"w": np.full(10**5, round)}, {}, {str(round): None}))
        assert "database or disk is full: free some space on its disk" in str(caught.value)
        assert "run 'a-run' is durable up to round 1; what came later is kept in memory" in str(caught.value)
    assert query(tmp_path / "runs.db", "SELECT round FROM checkpoints") == [(1,)]
    with pytest.raises(StoreError, match="disk is full"):
        store.close()
    page_limit["pages"] = 10**9
    store.close()
    with SqliteStore(tmp_path / "runs.db") as again:
        assert again.load("a-run").round == 3
        assert again.load("a-run").state["w"][-1] == 3
        assert dict(again.load("a-run").memories) == {"2": None, "3": None}
        assert [event["round"] for event in again.events("a-run")] == [2, 3]


def test_a_new_run_on_a_full_disk_changes_nothing(tmp_path, page_limit):
    store = SqliteStore(tmp_path / "runs.db")
    page_limit["pages"] = 1
    store.close()
    with pytest.raises(StoreError, match=r"disk is full: free some space on its disk\. Nothing in it has changed"):
        store.create("a-run", {"config": "x" * 10**5})
    page_limit["pages"] = 10**9
    store.close()
    store.create("a-run", {})
    store.close()
