"""What can be asked of the tables with SQL, the queries of the documentation among it, and what writing costs."""

import json
import math
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from insitu.core.events import ClientFailed, Evaluated, RoundCommitted, RoundDiscarded, UpdatesArrived
from insitu.core.protocols import Checkpoint
from insitu.store.sqlite import SqliteStore

DOCS = Path(__file__).parents[2] / "docs" / "store-and-resume.md"
QUERIES = re.findall(r"```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
RUN = "RUN"


def arrived(round, client, **metrics):
    return UpdatesArrived(RUN, round, list(metrics), [[client, 10.0, 1_000_000, *metrics.values()]], 5)


def committed(round, **metrics):
    return RoundCommitted(RUN, round, 2, 1, 0.5, metrics, 2_000_000, 10, {"disagreement": 0.25})


@pytest.fixture
def path(tmp_path):
    """Two rounds of two clients, the first one discarded once; a third client always fails."""
    path = tmp_path / "runs.db"
    with SqliteStore(path) as store:
        store.create(RUN, {"config": {"algorithm": {"lr": 0.5}}})
        store.event(RUN, arrived(1, "gone", loss=9.0))
        store.event(RUN, RoundDiscarded(RUN, 1, "too few"))
        for round in (1, 2):
            store.event(RUN, arrived(round, "a", loss=0.5))
            store.event(RUN, arrived(round, "b", loss=np.float32(1.5)))
            store.event(RUN, ClientFailed(RUN, round, "c", "ValueError: no"))
            store.event(RUN, committed(round, loss=1.0 if round == 1 else math.nan))
            store.event(RUN, Evaluated(RUN, round, "central", {"accuracy": round / 2}))
            by_client = {"a": {"accuracy": 0.25}, "b": {"accuracy": math.inf}}
            store.event(RUN, Evaluated(RUN, round, "clients", {"accuracy": 0.25}, by_client))
            store.commit(RUN, Checkpoint(round, {"w": np.zeros(2)}, {}, {}))
    return path


def ask(path, sql):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def test_the_queries_of_the_documentation_answer(path):
    runs, accuracy, loss, failures, megabytes = [ask(path, query) for query in QUERIES]
    assert [(run[0], *run[2:]) for run in runs] == [(RUN, "running", 2, 0.5)]
    assert accuracy == [(1, 0.5), (2, 1.0)]
    assert loss == [("b", 1.5, 2), ("a", 0.5, 2)]
    assert failures == [("c", "ValueError: no", 2)]
    assert megabytes == [(4.0,)]


def test_metrics_of_all_kinds_are_rows_and_what_is_not_finite_is_null(path):
    assert ask(path, "SELECT kind, name, value FROM round_metrics WHERE round = 2 ORDER BY kind") == [
        ("central", "accuracy", 1.0),
        ("clients", "accuracy", 0.25),
        ("measures", "disagreement", 0.25),
        ("train", "loss", None),
    ]
    assert ask(path, "SELECT client, kind, name, value FROM client_metrics WHERE round = 2 ORDER BY 1, 2, 3") == [
        ("a", "clients", "accuracy", 0.25),
        ("a", "train", "examples", 10.0),
        ("a", "train", "loss", 0.5),
        ("b", "clients", "accuracy", None),
        ("b", "train", "examples", 10.0),
        ("b", "train", "loss", 1.5),
    ]


def test_metrics_of_a_discarded_attempt_are_dropped_though_they_were_written(tmp_path):
    path = tmp_path / "runs.db"
    with SqliteStore(path) as store:
        store.create(RUN, {})
        store.event(RUN, arrived(1, "gone", loss=9.0))
        store.event(RUN, arrived(1, "here", loss=9.0))
        store.flush()
        store.event(RUN, RoundDiscarded(RUN, 1, "too few"))
        store.event(RUN, arrived(1, "here", loss=1.0))
    found = ask(path, "SELECT client, value FROM client_metrics WHERE name = 'loss'")
    assert found == [("here", 1.0)]
    assert len(ask(path, "SELECT * FROM events")) == 4


def test_json_in_the_tables_is_strict(path):
    def refuse(constant):
        raise AssertionError(constant)

    texts = ask(path, "SELECT data FROM events UNION ALL SELECT record FROM runs")
    assert len(texts) == 15
    for (text,) in texts:
        json.loads(text, parse_constant=refuse)
    assert ask(path, "SELECT min(json_valid(data)) FROM events") == [(1,)]


def test_the_view_has_what_was_told_of_many_clients_whatever_their_names(tmp_path):
    names = ["a'b", 'quo"te', "ä/1", "back\\slash", "0", "$[0]"]
    values = [[name, float(i), 100 + i, i / 7, math.nan if i == 2 else 1 - i] for i, name in enumerate(names)]
    with SqliteStore(tmp_path / "runs.db") as store:
        store.create(RUN, {})
        store.event(RUN, UpdatesArrived(RUN, 1, ["loss", "my 'metric'"], values, 5))
        store.event(RUN, Evaluated(RUN, 1, "clients", {}, {name: {"loss": i / 3} for i, name in enumerate(names)}))
    expected = [
        row
        for i, name in enumerate(names)
        for row in [
            (name, "clients", "loss", i / 3),
            (name, "train", "examples", float(i)),
            (name, "train", "loss", i / 7),
            (name, "train", "my 'metric'", None if i == 2 else float(1 - i)),
        ]
    ]
    found = ask(tmp_path / "runs.db", "SELECT client, kind, name, value FROM client_metrics ORDER BY 1, 2, 3")
    assert found == sorted(expected, key=lambda row: (row[0].encode(), *row[1:3]))


def test_a_client_takes_less_than_a_hundred_bytes_a_round(tmp_path):
    """Ten thousand clients a round for a thousand rounds must fit on a laptop."""
    path, rounds, cohort = tmp_path / "runs.db", 20, 1000
    rng = np.random.default_rng(0)
    with SqliteStore(path) as store:
        store.create(RUN, {})
        for round in range(1, rounds + 1):
            rows = [[f"client-{c:06}", 57.0, 31400, *rng.random(2).tolist()] for c in range(cohort)]
            store.event(RUN, UpdatesArrived(RUN, round, ["loss", "accuracy"], rows, 31404))
            store.event(RUN, committed(round, loss=0.5))
            store.commit(RUN, Checkpoint(round, {"w": np.zeros(10)}, {}, {}))
    assert path.stat().st_size / (rounds * cohort) < 100
