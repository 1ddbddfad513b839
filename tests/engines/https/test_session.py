"""Runs over sites in this process: the same answer as inline, whatever happens to the coordinator in between."""

from __future__ import annotations

import errno
import json
import threading
import time
from datetime import timedelta

import federations
import numpy as np
import pytest
from federations import NAMES, Federation, fedavg, honest, inline, refuses, silent, tables

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.kmeans import KMeans
from insitu.algorithms.knn import KNN
from insitu.algorithms.scaffold import Scaffold
from insitu.compress.quantize import Quantize
from insitu.core import aside, backed, events, tree
from insitu.core.errors import Halted, PlanError, RoundError, StoreError
from insitu.core.optim import Adam
from insitu.engines.https.calls import intake
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.cohort import Uniform
from insitu.rounds.plan import Plan
from insitu.rounds.policy import Policy
from insitu.store.opened import AT_ONCE
from insitu.store.sqlite import SqliteStore


def same(one, other):
    a, b = tree.flatten(tree.asnumpy(one.state)), tree.flatten(tree.asnumpy(other.state))
    assert np.array_equal(a, b)


def plans(clients):
    def of(algorithm, **more):
        return Plan(algorithm, evaluate_every=0, **more).resolve(clients.schema())

    return {
        "fedavg": fedavg(clients),
        "fedavg by eight bits": fedavg(clients, stages=(Quantize(bits=8),)),
        "fedavg of some": fedavg(clients, cohort=Uniform(3)),
        "scaffold": of(Scaffold(lr=0.1, epochs=1, batch_size=4), learner=LogisticLearner()),
        "kmeans": of(KMeans(k=3)),
        "knn": of(KNN(k=3)),
    }


@pytest.mark.parametrize("name", list(plans(tables())))
def test_the_answer_is_inlines_bit_for_bit(name):
    clients = tables()
    plan = plans(clients)[name]
    federation = Federation(clients, plan)
    with federation.coordinator():
        result = federation.run()
        same(result, inline(plan, clients))
        if name == "knn":
            x = clients.at(0).data.x
            assert list(result.predict(x)) == list(inline(plan, clients).predict(x))


@pytest.mark.parametrize("name", [*plans(tables()), "fedadam"])
def test_the_answer_is_the_same_where_the_model_lies_in_a_file(name, tmp_path, monkeypatch):
    clients = tables()
    adam = Plan(FedAvg(lr=0.1, server=Adam(), server_lr=0.01), learner=LogisticLearner(), evaluate_every=1)
    plan = plans(clients).get(name) or adam.resolve(clients.schema())
    laid: list[int] = []
    monkeypatch.setattr(aside, "LEAST", 8)
    lay = aside.laid

    def counted(value, folder):
        found = lay(value, folder)
        laid.append(sum(one is not other for one, other in zip(leaves(found), leaves(value), strict=True)))
        return found

    monkeypatch.setattr(aside, "laid", counted)
    federation = Federation(clients, plan, folder=tmp_path)
    with federation.coordinator():
        same(federation.run(), inline(plan, clients))
    assert len(laid) == 3  # before each round
    assert name == "knn" or min(laid) > 0


def leaves(value):
    return [leaf for _, leaf in tree.leaves(value)]


def test_a_disk_that_has_lost_the_model_ends_the_round_before_anything_is_made_of_it(tmp_path, monkeypatch):
    clients = tables()
    plan, store = fedavg(clients), SqliteStore(tmp_path / "runs.db", behind=AT_ONCE)
    monkeypatch.setattr(aside, "LEAST", 8)
    good, rounds = backed.flush, []

    def lost(x):
        rounds.append(x)
        if len(rounds) == 3:
            raise OSError(errno.EIO, "input/output error")
        good(x)

    monkeypatch.setattr(backed, "flush", lost)
    federation = Federation(clients, plan, folder=tmp_path)
    with federation.coordinator():
        with pytest.raises(StoreError, match="has lost what was written there"):
            federation.run(store=store)
        assert len(store.events("run", kinds=["RoundCommitted"])) < 3
        same(federation.run(store=store), inline(plan, clients))
    store.close()


@pytest.mark.parametrize("name", ["fedavg", "fedavg by eight bits"])
def test_the_answer_is_the_same_where_chunks_lie_in_a_bucket(name):
    clients = tables()
    plan = plans(clients)[name]
    federation = Federation(clients, plan)
    federation.blobs.near = False
    with federation.coordinator():
        same(federation.run(), inline(plan, clients))


def test_sites_evaluate_and_rounds_are_sealed_in_a_chain(tmp_path):
    clients = tables(holdout=0.3)
    plan = fedavg(clients, evaluate_every=1)
    federation, seen = Federation(clients, plan), []
    with SqliteStore(tmp_path / "runs.db") as store, federation.coordinator():
        result = federation.run(store=store, observers=[seen.append])
        stored = store.events("run", kinds=["RoundSealed"])
    other = inline(plan, clients)
    same(result, other)
    for mine, theirs in zip(result.history, other.history, strict=True):
        assert mine["clients_loss"] == pytest.approx(theirs["clients_loss"], abs=1e-12)
    seals = [event for event in seen if isinstance(event, events.RoundSealed)]
    assert [seal.round for seal in seals] == [1, 2, 3] == [event["round"] for event in stored]
    assert [[client for client, _ in seal.accepted] for seal in seals] == [list(NAMES)] * 3
    assert [(a.model, a.digest()) for a in seals[:-1]] == [(b.base, b.previous) for b in seals[1:]]
    assert seals[0].previous == ""
    kinds = [type(event).__name__ for event in seen]
    assert kinds.index("RoundSealed") < kinds.index("Evaluated")


class Crash(BaseException):
    """What a process that is killed sees."""


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "kmeans"])
def test_a_coordinator_that_dies_anywhere_ends_with_the_same_model(name, tmp_path, monkeypatch):
    """At each place where something can be half done, one after another, in one run that is started again and again."""
    clients = tables(holdout=0.3)
    plan = plans(clients)[name]
    plan = fedavg(clients, evaluate_every=1) if name == "fedavg" else plan
    places = ["call.packed", "call.opened", "call.unpacked", "call.closed", "call.closed_before_commit"]
    crashes = [(place, nth) for place in places for nth in (1, 2)]
    federation, died = Federation(clients, plan), []
    with SqliteStore(tmp_path / "runs.db", behind=AT_ONCE) as store:
        while True:
            left = {}
            if crashes:
                left = dict([crashes.pop(0)])

            def hit(place, left=left):
                if place in left:
                    left[place] -= 1
                    if left[place] == 0:
                        died.append(place)
                        raise Crash(place)

            monkeypatch.setattr("insitu.core.failpoints.hit", hit)
            try:
                with federation.coordinator():
                    result = federation.run(store=store, rounds=9)
                break
            except BaseException as error:
                if not isinstance(error, Crash):
                    raise
    assert len(died) == 2 * len(places)
    same(result, inline(plan, clients, rounds=9))


def test_a_round_goes_on_with_what_had_arrived_before_the_restart(tmp_path):
    clients = tables()
    plan = fedavg(clients)
    federation = Federation(clients, plan)
    with SqliteStore(tmp_path / "runs.db", behind=AT_ONCE) as store:
        with federation.coordinator({"d": silent}):
            halted_when(federation, lambda status: status.get("accepted") == 3)
            with pytest.raises(Halted, match="maintenance"):
                federation.run(store=store)
        before = [told for told in federation.asked if told[1] == "train"]
        with federation.coordinator():
            result = federation.run(store=store)
    assert {site for site, _, round, _ in before if round == 1} == set(NAMES)
    again = federation.asked[len(before) :]
    assert [(site, round) for site, kind, round, _ in again if kind == "train" and round == 1] == [("d", 1)]
    same(result, inline(plan, clients))


def test_a_run_that_is_halted_goes_on_in_the_same_process(tmp_path):
    clients = tables()
    plan = fedavg(clients)
    federation = Federation(clients, plan)
    with SqliteStore(tmp_path / "runs.db", behind=AT_ONCE) as store, federation.coordinator({"d": silent}):
        halted_when(federation, lambda status: status.get("accepted") == 3)
        with pytest.raises(Halted):
            federation.run(store=store)
        federation.exchange.release("run")
        task = next(task for site, *_, task in federation.asked if site == "d")
        told = {**told_of(federation, "d"), "task": task}
        federation.call(honest(federation, "d", told))  # the answer comes while nobody listens, and counts
        federation.call(join(federation, "d"))
        result = federation.run(store=store)
    same(result, inline(plan, clients))


def told_of(federation, site):
    return federation.exchange._book.of_site(site)[0].tasks[site]


async def join(federation, site):
    """Another process of a site, in the place of one that hangs."""
    import asyncio

    federation.more = asyncio.ensure_future(federations.serve(federation, site, honest))


def halted_when(federation, ready):
    """Halts the run from another thread as soon as its status is as wanted."""

    def look():
        while not ready(federation.exchange.status("run")):
            time.sleep(0.005)
        federation.call(as_coroutine(lambda: federation.exchange.halt("run", "maintenance")))

    threading.Thread(target=look, daemon=True).start()


async def as_coroutine(function):
    return function()


# ------------------------------------------------------------ policies


def test_a_void_round_is_tried_again_and_stays_void_after_a_restart(tmp_path, monkeypatch):
    clients = tables()
    plan = fedavg(clients, policy=Policy(quorum=0.75, retries=2))
    turns = {"c": 0, "d": 0}

    async def moody(federation, site, told):
        turns[site] += 1
        await (refuses if turns[site] == 1 else honest)(federation, site, told)

    federation, seen = Federation(clients, plan), []
    with SqliteStore(tmp_path / "runs.db", behind=AT_ONCE) as store:
        real, calls = federations.Exchange.close, []

        async def close(self, key, reason):
            await real(self, key, reason)
            calls.append((key.number, reason))
            if len(calls) == 1:
                raise Crash

        monkeypatch.setattr(federations.Exchange, "close", close)
        with federation.coordinator({"c": moody, "d": moody}), pytest.raises(Crash):
            federation.run(store=store, rounds=1)
        with federation.coordinator({"c": moody, "d": moody}):
            result = federation.run(store=store, rounds=1, observers=[seen.append])
    assert [number for number, _ in calls] == [0, 0, 1]
    assert calls[0][1].startswith("void")
    assert calls[2][1].startswith("counts")
    assert [type(e).__name__ for e in seen].count("RoundDiscarded") == 1
    assert turns == {"c": 2, "d": 2}  # nobody was asked again for what had been said
    same(result, inline(fedavg(clients), clients, rounds=1))


def test_a_run_that_stopped_for_want_of_a_quorum_asks_anew_when_it_is_resumed(tmp_path):
    clients = tables()
    plan = fedavg(clients, policy=Policy(quorum=1.0, missed="stop"))
    federation = Federation(clients, plan)
    with SqliteStore(tmp_path / "runs.db", behind=AT_ONCE) as store:
        with federation.coordinator({"d": refuses}), pytest.raises(RoundError, match="void 1 time"):
            federation.run(store=store)
        with federation.coordinator():
            result = federation.run(store=store)
    same(result, inline(plan, clients))


def test_the_first_to_answer_count_where_more_are_asked_than_wanted():
    clients = tables()
    plan = fedavg(clients, cohort=Uniform(2), policy=Policy(over_select=1.0))
    federation, seen = Federation(clients, plan), []
    with federation.coordinator({"a": silent, "c": silent}):
        federation.run(rounds=1, observers=[seen.append])
    (seal,) = [event for event in seen if isinstance(event, events.RoundSealed)]
    assert [client for client, _ in seal.accepted] == ["b", "d"]


def test_whoever_misses_the_deadline_has_failed_and_comes_too_late():
    clients = tables()
    plan = fedavg(clients, policy=Policy(quorum=0.5, deadline=timedelta(seconds=0.6)))
    federation, seen, late = Federation(clients, plan), [], []

    async def slow(federation, site, told):
        import asyncio

        answer = federations.answered(federation, site, told)
        if told["round"] > 1:
            return await federations.send(federation, site, told, answer)
        while (await federation.exchange.alive(site, told["task"], "training"))[0]:
            await asyncio.sleep(0.02)
        try:
            await federations.send(federation, site, told, answer)
        except federations.Refusal as refusal:
            late.append(refusal.code)
            raise

    with federation.coordinator({"b": slow}):
        federation.run(rounds=2, observers=[seen.append])
    failures = [event for event in seen if isinstance(event, events.ClientFailed)]
    assert [(f.round, f.client) for f in failures] == [(1, "b")]
    assert failures[0].error.startswith("DeadlineError: no answer within 0.6 s")
    seals = [event for event in seen if isinstance(event, events.RoundSealed)]
    assert [client for client, _ in seals[0].accepted] == ["a", "c", "d"]
    assert [client for client, _ in seals[1].accepted] == list(NAMES)
    assert late in (["ROUND_CLOSED"], ["STALE_ROUND"])


# ------------------------------------------------------------ what is kept, and who takes part


@pytest.mark.parametrize("small", [0, intake.SMALL])
def test_chunks_and_documents_of_rounds_before_the_last_are_removed(small, monkeypatch):
    monkeypatch.setattr(intake, "SMALL", small)  # 0: every update's manifest is a document
    clients = tables()
    plan = fedavg(clients)
    federation, most, papers = Federation(clients, plan), [], []

    def look(event):
        most.append(len(federation.blobs.whole))
        papers.append(len(federation.ledger.documents))

    with federation.coordinator():
        federation.run(rounds=8, observers=[look])
        federation.call(federation.exchange.forget("run", 2**62))
        federation.exchange.shelf.clear()
    assert max(most) <= 3 * (len(NAMES) + 1)
    assert max(papers) <= 1 + 3 * (1 if small else len(NAMES) + 1)
    (left,) = federation.ledger.documents.values()
    assert json.loads(left)["run"] == "run"  # the description
    assert not federation.blobs.whole
    assert not federation.ledger.kept


def test_a_site_that_joins_takes_part_from_the_next_round_on_and_a_restart_knows(tmp_path):
    clients = tables(sites=(*NAMES, "e"))
    plan = fedavg(clients)
    federation, seen = Federation(clients, plan), []
    federation.ledger.places.clear()
    federation.ledger.admit("run", NAMES, 1)
    with SqliteStore(tmp_path / "runs.db", behind=AT_ONCE) as store:
        with federation.coordinator():
            federation.run(rounds=2, store=store, observers=[seen.append])
        store.update("run", clients=5)
        with federation.coordinator():
            federation.run(rounds=3, store=store, observers=[seen.append])
    seals = {event.round: event for event in seen if isinstance(event, events.RoundSealed)}
    assert [len(seals[round].accepted) for round in (1, 2, 3)] == [4, 5, 5]
    assert federation.ledger.roster("run")[-1] == ("e", 2)
    assert any(isinstance(event, events.Notice) and "e takes part from round 2 on" in event.text for event in seen)


def test_several_runs_share_their_sites_and_their_chunks():
    clients = tables()
    plan = fedavg(clients)
    federation, done = Federation(clients, plan), {}
    with federation.coordinator():

        def go(seed):
            done[seed] = federation.run(rounds=4, seed=seed, id=f"run-{seed}")

        threads = [threading.Thread(target=go, args=(seed,)) for seed in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for seed in (1, 2, 3):
            federation.call(federation.exchange.forget(f"run-{seed}", 2**62))
        federation.exchange.shelf.clear()
    for seed in (1, 2, 3):
        same(done[seed], inline(plan, clients, rounds=4, seed=seed))
    assert not federation.blobs.whole


def test_outside_of_a_coordinator_it_says_where_it_runs():
    clients = tables()
    with pytest.raises(PlanError, match="insitu submit"):
        insitu.run(fedavg(clients), clients, rounds=1, engine="https", store=None)
