"""Which files are taken for a store, what is said of others, and several processes at one file."""

import os
import runpy
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from insitu.core import wire
from insitu.core.errors import StoreError
from insitu.core.events import RoundStarted
from insitu.core.protocols import Checkpoint
from insitu.store import rows, schema
from insitu.store.database import sqlite as database
from insitu.store.sqlite import SqliteStore

SCRIPT = Path(__file__).with_name("commit_forever.py")
forever = runpy.run_path(str(SCRIPT))


def execute(path, sql, *parameters):
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(sql, parameters).fetchall()
        connection.commit()
        return found


@pytest.fixture
def path(tmp_path):
    """A store with one run of three rounds, closed."""
    path = tmp_path / "runs.db"
    with SqliteStore(path) as store:
        store.create("a-run", {"seed": 0})
        for round in (1, 2, 3):
            forever["one_round"](store, "a-run", round)
    return path


def test_folders_are_made_and_the_file_is_recognisable(tmp_path):
    path = tmp_path / "not" / "there" / "a 'quoted' ?name#.db"
    SqliteStore(path).close()
    assert path.read_bytes()[68:72] == b"insi"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_empty_file_becomes_a_store(tmp_path):
    (tmp_path / "empty.db").touch()
    with SqliteStore(tmp_path / "empty.db") as store:
        assert store.runs() == []


def other_database(path):
    execute(path, "CREATE TABLE patients (name)")


def newer(path):
    SqliteStore(path).close()
    execute(path, f"PRAGMA user_version = {schema.VERSION + 1}")


def older(path):
    SqliteStore(path).close()
    execute(path, "PRAGMA user_version = 1")


def versionless(path):
    SqliteStore(path).close()
    execute(path, "PRAGMA user_version = 0")


STRANGERS = {
    "text": (lambda path: path.write_text("loss,accuracy\n" * 100), "no SQLite database: give another path"),
    "a short text": (lambda path: path.write_text("lr = 0.1\n"), "no SQLite database: give another path"),
    "another program's database": (other_database, "database of another program: give another path"),
    "a newer schema": (newer, "schema version 4, newer than 3: open it with the insitu that wrote it"),
    "an older schema": (
        older,
        "schema version 1, and this insitu writes 3 and brings up what is not older than 2: move",
    ),
    "a schema without version": (versionless, "schema version 0 and .* tables: restore a copy"),
    "a folder": (lambda path: path.mkdir(), "is a folder: name a file in it"),
}


@pytest.mark.parametrize(("make", "message"), STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_is_refused_and_left_as_it_is(tmp_path, make, message):
    path = tmp_path / "stranger"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreError, match=message) as caught:
        SqliteStore(path)
    assert str(path) in str(caught.value)
    assert path.is_dir() or path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["stranger"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/dev/null/insitu.db", "/dev/null/insitu.db cannot be opened: .*: give another path"),
        ("x" * 300, "xxx cannot be opened: File name too long: give another path"),
        ("/proc/insitu.db", "/proc/insitu.db cannot be opened: .*writable, or give another path"),
        (":memory:", "would keep nothing"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(place, message):
    with pytest.raises(StoreError, match=message):
        SqliteStore(place)


def test_half_a_file_or_noise_in_it_is_said_to_be_damaged(path):
    whole = path.read_bytes()
    noise = np.random.default_rng(0).bytes(len(whole))
    for damaged in (whole[: len(whole) // 2], whole[:4096] + noise[4096:], whole[:100], noise):
        path.write_bytes(damaged)
        with (
            pytest.raises(StoreError, match=r"damaged: restore|no SQLite database") as caught,
            SqliteStore(path) as store,
        ):
            store.load("a-run")
        assert str(path) in str(caught.value)


def test_any_damaged_byte_of_a_blob_is_noticed(path):
    (blob,) = execute(path, "SELECT blob FROM checkpoints")[0]
    for at in (0, 9, 30, len(blob) // 2, len(blob) - 1):
        bad = bytearray(blob)
        bad[at] ^= 1
        execute(path, "UPDATE checkpoints SET blob = ?", bytes(bad))
        message = "run 'a-run', round 3: its checkpoint cannot be read"
        with SqliteStore(path) as store, pytest.raises(StoreError, match=message):
            store.load("a-run")
    execute(path, "UPDATE checkpoints SET blob = ?", blob)
    execute(path, "UPDATE memories SET blob = zeroblob(100) WHERE client = 'client-1'")
    with SqliteStore(path) as store, pytest.raises(StoreError, match="round 3: the memory of 'client-1' cannot be"):
        store.load("a-run")


def test_a_checkpoint_of_another_round_is_noticed(path):
    execute(path, "UPDATE checkpoints SET round = 2")
    with SqliteStore(path) as store, pytest.raises(StoreError, match="round 2: its checkpoint is of another round"):
        store.load("a-run")


def test_large_trees_lie_in_parts_of_which_none_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "PART", 1000)
    path = tmp_path / "runs.db"
    memories = {"a": np.arange(500.0), "b": None}
    with SqliteStore(path) as store:
        store.create("a-run", {})
        store.commit("a-run", Checkpoint(1, {"w": np.arange(1000.0)}, {}, memories))
        store.flush()
        store.commit("a-run", Checkpoint(2, {"w": np.arange(300.0)}, {}, {"a": np.arange(200.0)}))
        seen = store.load("a-run")
    assert seen.state["w"].tolist() == list(range(300))
    assert wire.digest(dict(seen.memories)) == wire.digest({"a": np.arange(200.0), "b": None})
    assert execute(path, "SELECT count(*) FROM checkpoints") == [(3,)]
    execute(path, "DELETE FROM checkpoints WHERE part = 1")
    with SqliteStore(path) as store, pytest.raises(StoreError, match="round 2: its checkpoint cannot be read"):
        store.load("a-run")


def test_processes_that_make_and_write_one_file_at_once(tmp_path):
    path = tmp_path / "runs.db"
    names = [f"run-{i}" for i in range(3)]
    children = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(path), name, "0", "15"], stdout=subprocess.DEVNULL)
        for name in names
    ]
    seen = []
    while any(child.poll() is None for child in children):
        with SqliteStore(path) as store:  # a reader beside them
            seen.append([run["rounds"] for run in store.runs()])
    assert [child.returncode for child in children] == [0] * 3
    with SqliteStore(path) as store:
        for name in names:
            found = store.load(name)
            assert found.round == 15
            assert wire.digest(found.state) == wire.digest(forever["state_at"](15))
            assert len(store.events(name)) == 7 * 15
    assert any(0 < sum(rounds) < 45 for rounds in seen)
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_lock_that_is_never_given_back_is_explained(path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    store = SqliteStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process has been writing for"):
            store.update("a-run", status="stopped")
        other.execute("ROLLBACK")
    store.update("a-run", status="stopped")
    store.close()
    assert execute(path, "SELECT status FROM runs") == [("stopped",)]


def test_reads_do_not_wait_for_a_writer(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other, SqliteStore(path) as store:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM events")
        assert len(store.events("a-run")) == 21
        other.execute("ROLLBACK")


def test_the_write_waits_until_it_is_due(tmp_path):
    path = tmp_path / "runs.db"
    with SqliteStore(path, behind=timedelta(hours=1)) as store:
        store.create("a-run", {})
        forever["one_round"](store, "a-run", 1)
        assert execute(path, "SELECT count(*) FROM events") == [(0,)]
        store.flush()
        assert execute(path, "SELECT max(round) FROM events") == [(1,)]
        store.behind = timedelta(0)
        forever["one_round"](store, "a-run", 2)
        assert execute(path, "SELECT max(round) FROM events") == [(2,)]
        store.behind = timedelta(hours=1)
        store.commit("a-run", Checkpoint(3, {}, {}, {}, finished=True))
        assert execute(path, "SELECT status, rounds FROM runs") == [("finished", 3)]
    assert not os.path.exists(f"{path}-wal")


def wait_for(path, sql, expected):
    """Until the file says so, ten seconds at most."""
    for _ in range(1000):
        if (found := execute(path, sql)) == expected:
            return
        time.sleep(0.01)
    raise AssertionError(found)


def test_a_round_becomes_durable_by_itself_without_the_next_one(tmp_path):
    """And alone: of the round under way nothing is written, so that whoever is killed in it leaves whole rounds."""
    path = tmp_path / "runs.db"
    with SqliteStore(path, behind=timedelta(seconds=0.05)) as store:
        store.create("a-run", {})
        for round in (1, 2):
            store._last_write = time.monotonic()  # a commit that is due would write by itself
            forever["one_round"](store, "a-run", round)
            store.event("a-run", RoundStarted("a-run", round + 1, 5))
            wait_for(path, "SELECT rounds FROM runs", [(round,)])
            assert execute(path, "SELECT max(round), count(*) FROM events") == [(round, 8 * round - 1)]
            assert execute(path, "SELECT DISTINCT round FROM checkpoints") == [(round,)]
        store.flush()
        assert execute(path, "SELECT max(round), count(*) FROM events") == [(3, 16)]


def test_what_the_thread_cannot_write_is_said_at_the_next_commit_and_kept(tmp_path):
    path = tmp_path / "runs.db"
    store = SqliteStore(path, behind=timedelta(seconds=0.5))
    store.create("a-run", {})
    store._last_write = time.monotonic()  # a commit that is due would write by itself
    store.commit("a-run", Checkpoint(1, {"w": object()}, {}, {}))
    while store._timer is not None:
        time.sleep(0.005)
    assert execute(path, "SELECT rounds FROM runs") == [(0,)]
    with pytest.raises(StoreError, match="cannot be stored after round 0: state/w is a"):
        store.flush()
    store.commit("a-run", Checkpoint(2, {"w": 1}, {}, {}))
    store.close()
    assert execute(path, "SELECT rounds FROM runs") == [(2,)]


def test_closing_ends_the_thread_that_waits(tmp_path):
    before = threading.active_count()
    store = SqliteStore(tmp_path / "runs.db", behind=timedelta(hours=1))
    store.create("a-run", {})
    forever["one_round"](store, "a-run", 1)
    (timer,) = [thread for thread in threading.enumerate() if thread is store._timer]
    store.close()
    timer.join(10)
    assert threading.active_count() == before
