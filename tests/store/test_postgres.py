"""What may befall a server while something is written to it: nothing is lost, and nothing happens twice."""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest
from breaking_proxy import Proxy

from insitu.core import failpoints
from insitu.core.audit import verify
from insitu.core.errors import DiskFull, Fenced, MissingExtra, StoreError
from insitu.core.events import Evaluated, RoundCommitted, RoundDiscarded, UpdatesArrived
from insitu.core.federation import Call, CallKey, Entry
from insitu.core.protocols import Checkpoint
from insitu.store.database import postgres as database
from insitu.store.ledger.postgres import PostgresLedger
from insitu.store.opened import AT_ONCE, open_ledger, open_store
from insitu.store.postgres import PostgresStore

KEY = CallKey("a-run", 1, "train", 0)


def accepted(seq):
    return Entry(seq, "accepted", f"site-{seq}", 0.5, {"bytes": 7})


@pytest.fixture
def url(postgres):
    return postgres.fresh()


@pytest.fixture
def ledger(url):
    with PostgresLedger(url) as ledger:
        ledger.lead("one", 600.0)
        ledger.open_call(Call(KEY, ["north"], {"": "a" * 64}, 1.0))
        yield ledger


def numbers(ledger):
    return [entry.seq for entry in ledger.calls("a-run")[0].entries]


def read_back(ledger):
    return [entry["what"] for entry in ledger.audited()]


# ------------------------------------------------------------ a server that goes away


@pytest.mark.parametrize("how", ["immediate", "fast"])
def test_a_restart_is_waited_for(postgres, ledger, how):
    outage(postgres, ledger, how, seconds=0.5)


@pytest.mark.long
def test_thirty_seconds_without_a_server_are_survived(postgres, ledger):
    outage(postgres, ledger, "immediate", seconds=30.0)


def outage(postgres, ledger, how, seconds):
    stop = threading.Event()

    def work():
        seq = 0
        while not stop.is_set():
            ledger.append(KEY, [accepted(seq)])
            ledger.audit([{"at": float(seq), "who": "", "what": str(seq)}])
            assert ledger.submitted() == []
            seq += 1
        return seq

    with ThreadPoolExecutor(1) as threads:
        written = threads.submit(work)
        try:
            time.sleep(0.2)
            postgres.stop(how)
            time.sleep(seconds)
            postgres.start()
            time.sleep(3.0)
        finally:
            stop.set()
        count = written.result()
    assert count > 10
    assert numbers(ledger) == list(range(count))
    assert read_back(ledger) == [str(seq) for seq in range(count)]
    assert verify(ledger.audited(limit=10**6)) is None


def test_a_server_that_stays_away_is_said_and_nothing_of_the_write_is_there(postgres, ledger, monkeypatch):
    monkeypatch.setattr(database.PostgresDatabase, "patience", 0.3)
    postgres.stop("fast")
    try:
        with pytest.raises(StoreError, match=r"cannot be written: .*is it up, and the URL right\?\. Nothing in it"):
            ledger.append(KEY, [accepted(0)])
        with pytest.raises(StoreError, match="cannot be read"):
            ledger.calls("a-run")
        start = time.monotonic()
        with pytest.raises(StoreError, match="cannot be written"):
            ledger.lead("one", 0.2)
        assert time.monotonic() - start < 5.0
    finally:
        postgres.start()
    assert numbers(ledger) == []
    ledger.append(KEY, [accepted(0)])


# ------------------------------------------------------------ a COMMIT that nobody answers


@pytest.fixture
def proxy(postgres):
    proxy = Proxy(postgres.port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_of_unknown_fate_happens_once(proxy, url, ledger, cut):
    through = url.replace(url.split("@127.0.0.1:")[1].split("/")[0], str(proxy.port))
    with open_ledger(through) as shaky, open_store(through, ledger=ledger, behind=AT_ONCE) as store:
        assert not shaky.lead("two", 1.0)
        ledger.resign()
        assert shaky.lead("two", 600.0)
        with open_store(through, ledger=shaky, behind=AT_ONCE) as store:
            store.create("a-run", {"seed": 1})
            for seq in range(6):
                proxy.cut = cut
                shaky.append(KEY, [accepted(seq)])
                proxy.cut = cut
                shaky.audit([{"at": 1.0, "who": "", "what": str(seq)}])
                proxy.cut = cut
                assert shaky.lead("two", 600.0)
                proxy.cut = cut
                store.event("a-run", RoundCommitted("a-run", seq + 1, 1, 0, 0.5, {"loss": 1.0}, 1, 1))
                store.commit("a-run", Checkpoint(seq + 1, {"w": np.full(3, seq)}, {}, {"a": {"n": seq}}))
                assert proxy.cut is None
            proxy.cut = cut
            store.create("b-run", {"seed": 2})
            assert proxy.cut is None
            assert len(store.events("a-run")) == 6
            assert store.load("a-run").memories["a"] == {"n": 5}
        assert shaky.epoch == 3
    assert numbers(ledger) == list(range(6))
    assert read_back(ledger) == [str(seq) for seq in range(6)]


def test_an_attempt_whose_fate_is_still_open_is_waited_for(url, ledger, postgres, monkeypatch):
    """The connection is gone for us, while the server still works at the COMMIT: whoever asks must wait for its end."""
    seen = []
    real = database.PostgresDatabase._written
    monkeypatch.setattr(database.PostgresDatabase, "_written", lambda *given: seen.append(real(*given)) or seen[-1])
    # A trigger that runs at COMMIT holds it up in the server for a second, and its own client is gone by then.
    postgres.sql(
        url,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.seq = 0 THEN PERFORM pg_sleep(1); END IF; RETURN NEW; END $$;"
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON entries DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    proxy = Proxy(postgres.port)
    try:
        ledger.resign()
        through = url.replace(url.split("@127.0.0.1:")[1].split("/")[0], str(proxy.port))
        with open_ledger(through) as shaky:
            shaky.lead("two", 600.0)
            proxy.cut = "after"
            start = time.monotonic()
            shaky.append(KEY, [accepted(0)])
    finally:
        proxy.close()
    assert seen == [True]  # nobody has taken it for lost before
    assert time.monotonic() - start > 0.8
    assert numbers(ledger) == [0]


# ------------------------------------------------------------ a leader that sleeps in the midst of a transaction


def test_a_leader_frozen_before_its_commit_cannot_finish_it(url, ledger, monkeypatch):
    monkeypatch.setattr(database, "IDLE", 0.3)
    frozen, thaw = threading.Event(), threading.Event()

    def hit(name):
        if (
            name == "ledger.commit.before"
            and threading.current_thread().name.startswith("sleeper")
            and not thaw.is_set()
        ):
            frozen.set()
            thaw.wait(30)

    with open_ledger(url) as sleeper, open_ledger(url) as other, ThreadPoolExecutor(1, "sleeper") as threads:
        ledger.resign()
        assert sleeper.lead("sleeper", 0.1)
        monkeypatch.setattr(failpoints, "hit", hit)
        write = threads.submit(sleeper.append, KEY, [accepted(0)])
        assert frozen.wait(10)
        time.sleep(0.1)
        assert other.lead("other", 600.0)  # waits until the server has ended the sleeper's transaction
        thaw.set()
        with pytest.raises(Fenced, match="'other' leads it now"):
            write.result()
        assert numbers(other) == []


def test_a_long_write_keeps_nobody_from_renewing(url, ledger, monkeypatch):
    writing, renewed = threading.Event(), threading.Event()

    def hit(name):
        if name == "store.commit.before":
            writing.set()
            assert renewed.wait(10)

    with open_store(url, ledger=ledger, behind=AT_ONCE) as store, ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(failpoints, "hit", hit)
        write = threads.submit(store.create, "a-run", {})
        assert writing.wait(10)
        assert ledger.lead("one", 600.0)
        ledger.append(KEY, [accepted(0)])
        renewed.set()
        write.result()
        assert store.record("a-run")["status"] == "running"


# ------------------------------------------------------------ others at the same database


def test_runs_that_are_written_at_once_do_not_hinder_one_another(url):
    def play(i):
        with PostgresStore(url, behind=AT_ONCE) as store:
            run = f"run-{i}"
            store.create(run, {"seed": i})
            for round in range(1, 21):
                store.event(run, RoundCommitted(run, round, 1, 0, 0.5, {"loss": 1.0}, 1, 1))
                store.commit(run, Checkpoint(round, {"w": np.full(100, round)}, {}, {"a": {"n": round}}))
            return store.load(run).round

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(play, range(4))) == [20] * 4


def test_many_that_open_an_empty_database_at_once_make_its_tables_once(url):
    with ThreadPoolExecutor(4) as threads:
        for ledger in threads.map(lambda _: open_ledger(url), range(4)):
            assert ledger.members() == []
            ledger.close()


# ------------------------------------------------------------ what is said


def test_a_full_disk_is_told_apart(url, ledger, postgres):
    postgres.sql(
        url,
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$;"
        "CREATE TRIGGER full_disk BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION full_disk()",
    )
    with pytest.raises(DiskFull, match=r"could not extend file.*: free some space on the server's disk"):
        ledger.append(KEY, [accepted(0)])
    postgres.sql(url, "DROP TRIGGER full_disk ON entries")
    ledger.append(KEY, [accepted(0)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url.replace("/test_", "/toast_"), r"does not exist: check the URL, the role and the database"),
        (lambda url: url.replace("127.0.0.1", "host.invalid"), r"host\.invalid.* cannot be opened"),
        (lambda url: "postgresql://insitu@host:port/name", "no URL of a database"),
        (lambda url: "mysql://user:secret@host/name", r"is no database that insitu knows: give a file's path"),
    ],
)
def test_a_wrong_address_is_said_at_once_and_without_its_password(monkeypatch, url, change, message):
    monkeypatch.setattr(database, "OPENING", 0.2)
    start = time.monotonic()
    wrong = change(url).replace("insitu@", "insitu:secret@")
    with pytest.raises(StoreError, match=message) as caught:
        open_store(wrong)
    assert "secret" not in str(caught.value)
    assert time.monotonic() - start < 5.0


def test_without_psycopg_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'insitu\[postgres\]'"):
        open_store("postgresql://host/name")


# ------------------------------------------------------------ what can be asked of the tables


def test_the_view_says_what_sqlites_says(url, tmp_path):
    found = []
    for place in (url, str(tmp_path / "runs.db")):
        with open_store(place) as store:
            store.create("a-run", {"config": {"algorithm": {"lr": 0.5}}})
            store.event("a-run", UpdatesArrived("a-run", 1, ["loss"], [["gone", 10.0, 5, 9.0]], 5))
            store.event("a-run", RoundDiscarded("a-run", 1, "too few"))
            for round in (1, 2):
                rows = [["a", 10.0, 100, 0.5, 0.1], ["b 'ä'", 5, 100, np.nan, 2]]
                store.event("a-run", UpdatesArrived("a-run", round, ["loss", "error"], rows, 5))
                by_client = {"a": {"accuracy": 0.25}, "b": {"accuracy": np.inf}}
                store.event("a-run", Evaluated("a-run", round, "clients", {"accuracy": 0.25}, by_client))
                store.event("a-run", Evaluated("a-run", round, "central", {"accuracy": 0.25}))
        found.append(asked(place, "SELECT * FROM client_metrics"))
    assert len(found[0]) == 2 * (2 * 3 + 2)
    assert found[0] == found[1]
    query = "SELECT record::json #>> '{config,algorithm,lr}' FROM runs"
    assert asked(url, query) == [("0.5",)]


def asked(place, query):
    import sqlite3
    from contextlib import closing

    if "://" in place:
        with psycopg.connect(place) as connection:
            rows = connection.execute(query).fetchall()
    else:
        with closing(sqlite3.connect(place)) as connection:
            rows = connection.execute(query).fetchall()
    return sorted(rows, key=lambda row: json.dumps(row))


def test_a_model_larger_than_a_row_comes_back(url, monkeypatch):
    monkeypatch.setattr("insitu.store.rows.PART", 1000)
    with PostgresStore(url, behind=AT_ONCE) as store:
        store.create("a-run", {})
        store.commit("a-run", Checkpoint(1, {"w": np.arange(1000.0)}, {}, {"a": np.arange(500.0)}))
        found = store.load("a-run")
    assert found.state["w"].tolist() == list(range(1000))
    assert found.memories["a"].tolist() == list(range(500))
