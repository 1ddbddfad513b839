"""How a file of version 2, made by the insitu of then, comes to the present version, or stays as it was."""

import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from insitu.core import failpoints
from insitu.core.errors import StoreError
from insitu.store import migrations, schema
from insitu.store.ledger import tables
from insitu.store.ledger.sqlite import SqliteLedger
from insitu.store.opened import open_ledger, open_store
from insitu.store.sqlite import SqliteStore

OLD = Path(__file__).with_name("version_2.sql").read_text(encoding="utf-8")
RUN = "20260101-old"


def ask(path, sql):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def layout(path):
    """Every table, index and view in its own words, without what spaces there are."""
    found = ask(path, "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name")
    return [(kind, name, re.sub(r"\s+", " ", sql).strip()) for kind, name, sql in found]


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD)
    assert ask(path, "PRAGMA user_version") == [(2,)]
    return path


def as_before(path):
    return ask(path, "PRAGMA user_version") == [(2,)] and {name for _, name, _ in layout(path)} == {
        "checkpoints", "events", "events_by_round", "memories", "round_metrics", "runs", "client_metrics"
    }  # fmt: skip


def test_an_old_file_is_brought_up_with_all_that_is_in_it(old, tmp_path):
    before = ask(old, "SELECT * FROM events"), ask(old, "SELECT * FROM client_metrics")
    with SqliteStore(old) as store:
        assert ask(old, "PRAGMA user_version") == [(schema.VERSION,)]
        found = store.load(RUN)
        assert (found.round, found.state["w"].tolist(), found.memories["a"]) == (2, [2.0, 2.0, 2.0], {"n": 2})
        assert len(store.events(RUN)) == 6
        assert store.record(RUN)["seed"] == 7
    assert (ask(old, "SELECT * FROM events"), ask(old, "SELECT * FROM client_metrics")) == before
    SqliteStore(tmp_path / "new.db").close()
    assert layout(old) == layout(tmp_path / "new.db")


def test_a_ledger_brings_it_up_too(old):
    with SqliteLedger(old) as ledger:
        assert ledger.lead("one", 60.0)
    with SqliteStore(old) as store:
        assert store.load(RUN).round == 2


class Struck(Exception):
    """What a failpoint raises here."""


NAMES = [f"migration.{to}.{when}" for to in migrations.STEPS if to > 2 for when in ("before", "after")]


@pytest.mark.parametrize("name", [*NAMES, "migration.commit.before"])
def test_a_failure_half_way_leaves_the_old_version(old, monkeypatch, name):
    def strike(at):
        if at == name:
            raise Struck

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", strike)
        with pytest.raises(Struck):
            SqliteStore(old)
    assert as_before(old)
    with SqliteStore(old) as store:
        assert store.load(RUN).round == 2


KILLED = """
import os, signal, sys
from insitu.core import failpoints
from insitu.store.sqlite import SqliteStore
failpoints.hit = lambda name: name == sys.argv[2] and os.kill(os.getpid(), signal.SIGKILL)
SqliteStore(sys.argv[1])
"""


@pytest.mark.parametrize("name", ["migration.3.after", "migration.commit.before"])
def test_kill_9_half_way_leaves_the_old_version(old, name):
    done = subprocess.run([sys.executable, "-c", KILLED, str(old), name])
    assert done.returncode == -signal.SIGKILL
    assert as_before(old)
    with SqliteStore(old) as store:
        assert store.load(RUN).round == 2


def test_two_that_open_an_old_file_at_once_bring_it_up_once(old):
    command = [
        sys.executable,
        "-c",
        "import sys; from insitu.store.sqlite import SqliteStore; SqliteStore(sys.argv[1])",
    ]
    children = [subprocess.Popen([*command, str(old)]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    with SqliteStore(old) as store:
        assert store.load(RUN).round == 2


def test_the_ledgers_queries_know_the_columns_that_the_steps_make(tmp_path, postgres):
    for place in (str(tmp_path / "new.db"), postgres.fresh()):
        open_ledger(place).close()
        url = place if "://" in place else f"sqlite:///{place}"
        engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        inspector = sqlalchemy.inspect(engine)
        for table in (*tables.metadata.sorted_tables, *schema.metadata.sorted_tables):
            there = {column["name"] for column in inspector.get_columns(table.name)}
            assert there == {column.name for column in table.columns}, table.name
            key = inspector.get_pk_constraint(table.name)["constrained_columns"]
            assert key == [column.name for column in table.primary_key], table.name
        engine.dispose()


# ------------------------------------------------------------ PostgreSQL


def test_a_server_remembers_the_version_and_refuses_a_newer_one(postgres):
    url = postgres.fresh()
    open_store(url).close()
    assert postgres.sql(url, "SELECT value FROM meta WHERE key = 'version'") == [(str(schema.VERSION),)]
    postgres.sql(url, f"UPDATE meta SET value = '{schema.VERSION + 1}' WHERE key = 'version'")
    with pytest.raises(StoreError, match=r"newer than .*: open it with the insitu that wrote it"):
        open_store(url)
    postgres.sql(url, "UPDATE meta SET value = '1' WHERE key = 'version'")
    with pytest.raises(StoreError, match="schema version 1, and this insitu writes"):
        open_store(url)


def test_a_servers_older_tables_are_brought_up_or_stay(postgres, monkeypatch):
    """As version 2 would have made them: the tables of runs, and who says so."""
    url = postgres.fresh()
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        migrations.STEPS[2](connection)
    engine.dispose()
    with pytest.raises(StoreError, match=r"tables of another program \(checkpoints, events"):
        open_store(url)
    postgres.sql(url, "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    postgres.sql(url, "INSERT INTO meta VALUES ('application', 'insitu'), ('version', '2')")

    def strike(name):
        if name == "migration.3.after":
            raise Struck

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", strike)
        with pytest.raises(Struck):
            open_store(url)
    assert postgres.sql(url, "SELECT value FROM meta WHERE key = 'version'") == [("2",)]
    assert postgres.sql(url, "SELECT count(*) FROM pg_tables WHERE tablename = 'members'") == [(0,)]
    with open_ledger(url) as ledger:
        assert ledger.lead("one", 60.0)
    assert postgres.sql(url, "SELECT value FROM meta WHERE key = 'version'") == [(str(schema.VERSION),)]


def test_another_programs_database_is_left_as_it_is(postgres):
    url = postgres.fresh()
    postgres.sql(url, "CREATE TABLE runs (distance INTEGER)")
    with pytest.raises(StoreError, match=r"tables of another program \(runs\): give another database"):
        open_store(url)
    assert postgres.sql(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(1,)]
