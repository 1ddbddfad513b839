"""``insitu runs``, ``show`` and ``partition``: what is said of runs and clients."""

from __future__ import annotations

import json
import re
from datetime import datetime
from importlib.util import find_spec

import pytest
from cli_calls import call, done

from insitu.core import events
from insitu.store.sqlite import SqliteStore

needs_pictures = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")


@pytest.fixture
def two_runs(folder):
    done("run", "--rounds", 2)
    done("run", "--rounds", 3, "--set", "algorithm.name=fedprox")
    return folder


def test_runs_are_listed_newest_first(two_runs):
    header, first, second = done("runs").splitlines()
    assert header.split() == ["run", "started", "status", "algorithm", "learner", "rounds", "last", "metrics"]
    assert re.search(r"finished  fedprox +LogisticLearner +3/3 .*accuracy 0\.\d+", first)
    assert re.search(r"finished  fedavg +LogisticLearner +2/2 ", second)
    found = json.loads(done("runs", "--json"))
    assert [one["wanted"] for one in found] == [3, 2]


def test_reading_makes_no_store(folder):
    for args in (["runs"], ["show"], ["show", "abc"]):
        result = call(*args)
        assert result.exit_code == 2
        assert result.stderr == (
            "error: there is no store at runs/insitu.db: run something first, or give --store FILE\n"
        )
    assert not (folder / "runs").exists()


def test_a_store_without_runs(folder):
    SqliteStore(folder / "empty.db").close()
    assert done("runs", "--store", "empty.db") == "empty.db has no runs yet\n"
    assert "has no runs yet: run something first" in call("show", "--store", "empty.db").stderr


def test_show_tells_everything(two_runs):
    text = done("show")
    assert re.match(r"run \S+: finished, 3 of 3 rounds, 8 clients\nstarted [\d: -]+, seed 0\n", text)
    assert re.search(r"algorithm +fedprox\(lr=0\.1, .*mu=0\.1\)", text)
    assert re.search(r"versions +insitu \S+, python ", text)
    assert re.search(r"round +clients +failed +seconds +train_loss", text)
    assert re.search(r"sent by clients [\d.]+ kB, to clients [\d.]+ kB", text)
    assert "_p10" not in text
    assert "clients_accuracy_p10" in done("show", "--all")


def test_show_finds_runs_by_the_beginning_of_their_id(two_runs):
    older = done("runs").splitlines()[2].split()[0]
    assert f"run {older}: finished, 2 of 2" in done("show", older)
    assert f"run {older}: finished, 2 of 2" in done("show", older[:-1])
    assert "the nearest of its 2 is" in call("show", "nothing").stderr


def test_show_clients_worst_first(two_runs):
    header, *rows = done("show", "--clients").splitlines()
    assert header.split()[:3] == ["client", "examples", "trained"]
    assert len(rows) == 8
    accuracies = [float(row.split()[-1]) for row in rows]
    assert accuracies == sorted(accuracies)


def test_show_as_json_and_as_toml(two_runs):
    found = json.loads(done("show", "--json"))
    assert [row["round"] for row in found["history"]] == [1, 2, 3]
    assert set(found["by_client"]) == {str(i) for i in range(8)}
    assert found["config"]["algorithm"]["name"] == "fedprox"
    assert found["bytes_up"] > 0
    (two_runs / "again.toml").write_text(done("show", "--toml"), encoding="utf-8")
    first, again = done("show", "--json"), done("run", "again.toml")
    assert f"accuracy {json.loads(first)['history'][-1]['accuracy']:.4f}" in again


def test_failures_are_told(two_runs):
    with SqliteStore(two_runs / "runs" / "insitu.db") as store:
        run = store.runs()[0]["id"]
        for i in range(12):
            store.event(run, events.ClientFailed(run, 3, f"c{i}", "ValueError: no data"))
    text = done("show")
    assert "12 failures of clients\n  round 3, client 'c0': ValueError: no data\n" in text
    assert "… and 2 more (--all)" in text
    assert "client 'c11'" in done("show", "--all")


def test_many_rounds_are_cut_in_the_middle(folder):
    done("run", "--rounds", 30, "--set", "run.evaluate_every=30")
    rounds = re.findall(r"^ +(\d+|…)(?: |$)", done("show"), re.MULTILINE)
    assert rounds == ["1", "2", "3", "…", *map(str, range(19, 31))]
    assert len(re.findall(r"^ +\d+ ", done("show", "--all"), re.MULTILINE)) == 30


@needs_pictures
def test_rounds_as_a_picture(two_runs):
    pytest.importorskip("insitu.report.curves")
    assert done("show", "--plot", "rounds.png") == "wrote rounds.png\n"
    assert (two_runs / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_from_python_has_no_configuration_file(folder):
    import insitu
    from insitu.algorithms.kmeans import KMeans
    from insitu.data import Clients

    clients = Clients.from_arrays([[0.0], [1.0], [5.0]])
    insitu.run(insitu.Plan(KMeans(k=2)), clients, rounds=2, observers=[])
    assert "was started from Python, without a configuration file" in call("show", "--toml").stderr
    assert "kmeans(k=2" in done("show")
    assert re.search(r"kmeans +2/2 ", done("runs"))


def test_times_are_local(two_runs):
    started = done("runs").splitlines()[1].split()[1:3]
    assert abs(datetime.fromisoformat(" ".join(started)) - datetime.now()).total_seconds() < 300


# ---------------------------------------------------------------- partition


def test_partition_of_a_file(folder):
    text = done("partition", "insitu.toml")
    assert text.startswith("8 clients, 1,1")
    assert "distance of labels" in text


def test_partition_without_a_file(folder):
    text = done("partition", "--source", "digits", "--name", "dirichlet", "--clients", 100, "--alpha", 0.3)
    assert text.startswith("100 clients, 1,797 examples, 10 classes")
    other = done("partition", "--source", "digits", "--name", "shards", "--clients", 20, "--seed", 1)
    assert other.startswith("20 clients, 1,797 examples")
    uneven = done("partition", "--source", "iris", "--name", "quantity_skew", "--set", "data.partition.sigma=2",
                  "--clients", 5)  # fmt: skip
    assert uneven.startswith("5 clients, 150 examples")


def test_flags_change_the_file(folder):
    assert done("partition", "insitu.toml", "--clients", 4).startswith("4 clients")


@needs_pictures
def test_partition_as_a_picture(folder):
    text = done("partition", "insitu.toml", "--picture", "clients.png")
    assert text.endswith("wrote clients.png\n")
    assert (folder / "clients.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "partition needs a configuration file or --source"),
        (["--source", "digits"], "the source does not say who has which example"),
        (["--source", "digit", "--name", "iid"], "the command line, [data.source]: there is no data set 'digit'"),
        (["--source", "digits", "--name", "iid"], "[data.partition]: iid needs the key 'clients' (a whole number)"),
        (["--source", "digits", "--name", "iid", "--clients", 3, "--alpha", 1.0], "iid has no key 'alpha'"),
    ],
)
def test_partitions_that_cannot_be(folder, args, said):
    result = call("partition", *args)
    assert result.exit_code == 2
    assert said in result.stderr
