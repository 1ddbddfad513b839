"""A site at work, whatever breaks: each update counts once, and the answer is inline's, bit for bit."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from random import Random

import numpy as np
import pytest
from lossy import SITES, Federation, dies_at, quick

import insitu
from insitu.core import tree
from insitu.engines.https.site.rules import Rules
from insitu.store.sqlite import SqliteStore


@pytest.fixture
def federation(tmp_path, monkeypatch):
    quick(monkeypatch)
    made = Federation(tmp_path)
    yield made
    made.close()


def inline(federation, rounds=3):
    return insitu.run(
        federation.plan, federation.clients, rounds=rounds, engine="inline", seed=5, store=None, observers=[]
    )


def same(federation, result):
    """The model, bit for bit; and every site counted once a round."""
    np.testing.assert_array_equal(
        tree.flatten(result.variables.shared), tree.flatten(inline(federation).variables.shared)
    )
    assert [row["clients"] for row in result.history] == [3, 3, 3]
    for call in federation.ledger.calls("run"):
        clients = [entry.client for entry in call.entries if entry.kind == "accepted"]
        assert sorted(clients) == sorted(SITES)


def puts(federation, name):
    return [entry for entry in federation.transports[name].log if entry[0] == "PUT"]


def test_nothing_breaks(federation):
    with federation.running():
        same(federation, federation.run())
        assert {what for _, what, _ in federation.notes} == {"declared", "asked", "sending", "sent"}
    sent = [told for name, what, told in federation.notes if what == "sent" and name == "paris"]
    assert [told["bytes"] == told["length"] for told in sent] == [True] * 3


@pytest.mark.parametrize("fault", ["lost", "unheard", "twice"])
def test_every_second_request(federation, fault):
    """By chance: every other one would be the same one of two for ever."""

    def faults(name):
        random = Random(name)
        return lambda method, path: fault if random.random() < 0.5 else None

    with federation.running(faults):
        same(federation, federation.run())


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_what_broke_off_goes_on_there(federation, share):
    def faults(name):
        done = set()

        def fault(method, path):
            key = (method, path)
            first = key not in done and ("chunks" in path)
            done.add(key)
            return share if first else None

        return fault

    with federation.running(faults):
        same(federation, federation.run())
        sizes = [size for _, _, size, _ in puts(federation, "berlin")]
    assert len(sizes) == 6  # each of three chunks in two pieces
    first, rest = sizes[0], sizes[1]
    arrived = int(first * share)
    assert rest == first - arrived


@pytest.mark.parametrize("seed", range(3))
def test_anything_at_any_time(federation, seed):
    def faults(name):
        random = Random(f"{seed} {name}")
        kinds = ["lost", "unheard", "twice", 0.3, None, None, None, None]
        return lambda method, path: random.choice(kinds) if random.random() < 0.6 else None

    with federation.running(faults):
        same(federation, federation.run())


POINTS = [
    "site.fetched", "site.trained", "site.memory.before", "site.memory.after", "site.outbox.before",
    "site.outbox.after", "site.chunk", "site.sent", "site.acknowledged",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_site_that_dies_anywhere_goes_on(federation, monkeypatch, point):
    left = dies_at(monkeypatch, point, 4)
    with federation.running():
        same(federation, federation.run())
    assert left == [0]
    assert sum(text.endswith("died") for text in federation.said) == 4


def test_a_finished_update_is_not_made_anew(federation, monkeypatch):
    dies_at(monkeypatch, "site.outbox.after", 1)
    trained = Counter()
    local = type(federation.plan.algorithm).local

    def counted(self, task, client, learner, memory):
        trained[client.id, task.round] += 1
        return local(self, task, client, learner, memory)

    monkeypatch.setattr(type(federation.plan.algorithm), "local", counted)
    with federation.running():
        federation.run()
    assert set(trained.values()) == {1}
    assert len(trained) == 9


def test_a_model_that_is_there_is_not_fetched_again(federation):
    with federation.running():
        federation.run(1)
        before = len([one for one in federation.transports["rome"].log if one[1].startswith("/v1/chunks/")])
    assert before == 1
    with federation.running():  # the site again, from its folder; the run asks what it has asked before
        federation.run(1)
        again = [one for one in federation.transports["rome"].log if one[1].startswith("/v1/chunks/")]
    assert again == []


def test_what_a_site_does_not_allow_is_told_and_the_others_go_on(federation, monkeypatch):
    with federation.running(rules=Rules(least_cohort=4)), pytest.raises(insitu.core.errors.RoundError) as void:
        federation.run()
    assert "SITE_REFUSED" in str(void.value)
    assert "allow.least_cohort is 4" in str(void.value)
    assert ("paris", "refused") in {(name, what) for name, what, _ in federation.notes}


def test_a_lost_memory_fails_that_site_alone(federation, tmp_path):
    store = SqliteStore(tmp_path / "runs.db", behind=timedelta(0))
    with federation.running():
        federation.run(2, store)
    for file in (federation.folder / "rome" / "memory").rglob("*"):
        if file.is_file():
            file.unlink()
    with federation.running():
        result = federation.run(3, store)
    store.close()
    assert [row["clients"] for row in result.history] == [3, 3, 2]
    (last,) = [call for call in federation.ledger.calls("run") if call.key.round == 3]
    (failed,) = [entry for entry in last.entries if entry.kind == "failed"]
    assert failed.client == "rome"
    assert failed.data["error"].startswith("MEMORY_LOST")
