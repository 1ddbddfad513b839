"""Runs from the queue to their end, with sites in this process: orders, restarts, full disks, those who come late."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from backends import SITES, Rooms, clients

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core import wire
from insitu.core.errors import Refusal, StoreError
from insitu.core.federation import Member
from insitu.federation.metrics import Rounds
from insitu.federation.runs import Desk
from insitu.federation.settings import RunsTable
from insitu.learners.numpy import LogisticLearner
from insitu.store.opened import AT_ONCE, open_ledger, open_store

TABLES = {
    "run": {"rounds": 3, "seed": 1},
    "learner": {"name": "logistic"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 16},
}


class House:
    """A desk with its ledger and store in a folder, and what it said."""

    def __init__(self, folder, rooms, **settings):
        self.ledger = open_ledger(folder / "federation.db")
        self.store = open_store(folder / "federation.db", ledger=self.ledger, behind=AT_ONCE)
        self.said, self.rounds = [], Rounds()
        self.desk = Desk(
            self.ledger, self.store, rooms, RunsTable(**{"patience": 0.0, **settings}), folder / "code",
            lambda level, event, **fields: self.said.append((level, event, fields)), self.rounds,
            lambda who, what, data: self.ledger.audit([{"at": 1.0, "who": who, "what": what, "data": data}]),
        )  # fmt: skip

    def enrol(self, *names):
        for i, name in enumerate(names):
            self.ledger.add_member(Member(name, "site", f"{name}{i}", 1.0))
            self.ledger.declare(name, {"data": {"examples": 50}}, 2.0)

    def until(self, run, *statuses):
        for _ in range(3000):
            told = self.desk.status(run)
            if told["status"] in statuses and not (told["status"] != "running" and self.desk.live()):
                return told
            time.sleep(0.01)
        raise AssertionError(f"{told}\n{self.said}")

    def close(self):
        assert self.desk.end("the test is over")
        self.store.close()
        self.ledger.close()


@pytest.fixture
def rooms():
    return Rooms()


@pytest.fixture
def house(tmp_path, rooms):
    made = House(tmp_path, rooms)
    made.enrol(*SITES)
    made.desk.begin()
    yield made
    made.close()


def expected():
    plan = insitu.Plan(FedAvg(lr=0.1, batch_size=16), learner=LogisticLearner())
    return insitu.run(plan, clients(), rounds=3, seed=1, engine="inline", store=None, observers=[])


def params(house, run):
    return wire.decode(house.desk.model(run))["shared"]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_run_is_trained_to_its_end(house, rooms):
    rooms.go.set()
    run = house.desk.submit(TABLES, "", "anna")
    told = house.until(run, "finished")
    assert (told["committed"], told["of"], told["next"]) == (3, 3, "nothing: all rounds are done")
    assert told["history"]["round"] == 3
    same(params(house, run), expected().params)
    assert house.ledger.roster(run) == [(name, 1) for name in SITES]
    events, last = house.desk.events(run, 0)
    assert [e["seq"] for e in events] == list(range(1, last + 1))
    assert [e["event"] for e in events if e["event"] != "Notice"][:3] == [
        "RunStarted",
        "RoundStarted",
        "RoundCommitted",
    ]
    assert house.desk.events(run, last) == ([], last)
    assert house.rounds.committed == 3
    assert rooms.over == [run]
    (short,) = house.desk.listing()
    assert (short["run"], short["status"], short["rounds"], short["algorithm"]) == (run, "finished", 3, "fedavg")
    assert [(e["who"], e["what"]) for e in house.ledger.audited()] == [("anna", "submit")]


def test_it_says_for_whom_it_waits(house, rooms):
    run = house.desk.submit(TABLES, "", "anna")
    assert rooms.at_work.wait(10)
    told = house.until(run, "running")
    assert [one["site"] for one in told["waiting_for"]] == list(SITES)
    assert (told["round"], told["committed"], told["asked"]) == (1, 0, 3)
    assert "there is no deadline" in told["next"]
    rooms.go.set()
    house.until(run, "finished")


def test_a_run_is_paused_and_goes_on(house, rooms):
    run = house.desk.submit(TABLES, "", "anna")
    assert rooms.at_work.wait(10)
    assert house.desk.order(run, "pause", "anna") == "paused"
    told = house.until(run, "paused")
    assert (told["reason"], told["next"]) == ("by anna", f"`insitu resume {run}` goes on with round 1")
    rooms.go.set()
    time.sleep(0.05)
    assert rooms.done == []
    assert house.desk.order(run, "resume", "anna") == "queued"
    house.until(run, "finished")
    same(params(house, run), expected().params)
    assert [e["what"] for e in house.ledger.audited()] == ["submit", "pause", "resume"]


def test_a_run_is_stopped_and_stays_so(house, rooms):
    run = house.desk.submit(TABLES, "", "anna")
    assert rooms.at_work.wait(10)
    assert house.desk.order(run, "stop", "bob") == "stopping"
    assert house.until(run, "stopped")["reason"] == "by bob"
    with pytest.raises(Refusal, match="no model yet") as refused:
        house.desk.model(run)
    assert refused.value.code == "BAD_STATE"
    with pytest.raises(Refusal, match=f"run {run} is stopped, and cannot be told to pause"):
        house.desk.order(run, "pause", "bob")


@pytest.mark.parametrize("order", ["stop", "pause"])
def test_a_finished_run_takes_no_orders(house, rooms, order):
    rooms.go.set()
    run = house.desk.submit(TABLES, "", "anna")
    house.until(run, "finished")
    with pytest.raises(Refusal, match="is finished, and cannot be told"):
        house.desk.order(run, order, "anna")


def test_a_restart_goes_on_where_it_was(tmp_path, rooms):
    first = House(tmp_path, rooms)
    first.enrol(*SITES)
    first.desk.begin()
    run = first.desk.submit(TABLES, "", "anna")
    assert rooms.at_work.wait(10)
    first.close()
    rooms.halted.clear()
    rooms.go.set()
    second = House(tmp_path, rooms)
    second.desk.begin()
    second.until(run, "finished")
    same(params(second, run), expected().params)
    second.close()


def test_a_stop_that_was_under_way_is_done_after_a_restart(tmp_path, rooms):
    first = House(tmp_path, rooms)
    first.enrol(*SITES)
    run = first.desk.submit(TABLES, "", "anna")
    first.ledger.mark(run, "stopping", "by anna")
    first.close()
    second = House(tmp_path, rooms)
    second.desk.begin()
    assert second.until(run, "stopped")["reason"] == "by anna"
    second.close()


def test_a_store_that_fails_holds_a_run_up_and_does_not_end_it(house, rooms, monkeypatch):
    monkeypatch.setattr("insitu.federation.live.FIRST_WAIT", 0.3)
    rooms.trouble.append(StoreError("the disk is full: free some space"))
    rooms.go.set()
    run = house.desk.submit(TABLES, "", "anna")
    for _ in range(500):
        told = house.desk.status(run)
        if told["phase"] == "held up":
            break
        time.sleep(0.005)
    assert told["reason"] == "the disk is full: free some space"
    assert told["next"].startswith("round 1 goes on once that is mended")
    assert house.until(run, "finished")["reason"] == ""
    same(params(house, run), expected().params)


def test_a_plan_that_cannot_be_made_is_refused_with_the_reason(house):
    for tables, why in [
        ({**TABLES, "algorithm": {"name": "fedavgg"}}, "did you mean 'fedavg'"),
        ({**TABLES, "run": {"rounds": 0}}, "rounds=0"),
        ({**TABLES, "learner": {"name": "torch", "module": "nets.py:Net"}}, "there is no file .*nets.py"),
    ]:
        with pytest.raises(Refusal, match=why) as refused:
            house.desk.submit(tables, "", "anna")
        assert refused.value.code == "BAD_REQUEST"
    assert house.desk.listing() == []


def test_a_plan_that_the_engine_refuses_fails_with_the_reason(house):
    run = house.desk.submit({**TABLES, "world": {"speed": 100.0}}, "", "anna")
    told = house.until(run, "failed")
    assert "it has a world: leave [world] out" in told["reason"]
    assert f"`insitu resume {run}` tries again" in told["next"]


def test_what_sites_decide_is_left_out(house, rooms):
    rooms.go.set()
    run = house.desk.submit({**TABLES, "data": {"source": "digits"}}, "", "anna")
    house.until(run, "finished")
    assert "data" not in house.ledger.submitted()[0].tables


def test_it_waits_for_sites_and_says_so(tmp_path, rooms):
    house = House(tmp_path, rooms, sites=2, patience=60.0)
    house.ledger.add_member(Member("berlin", "site", "a", 1.0))
    house.ledger.add_member(Member("paris", "site", "b", 1.0))
    house.ledger.add_member(Member("rome", "site", "c", 1.0))
    house.desk.begin()
    run = house.desk.submit(TABLES, "", "anna")
    assert house.desk.status(run)["next"].startswith("it starts when 2 sites have said what data they have; 0 have, 3")
    house.ledger.declare("berlin", {"data": {"examples": 1}}, 2.0)
    house.ledger.declare("paris", {"data": {"examples": 1}}, 2.0)
    assert house.desk.status(run)["next"] == "it starts when rome have connected, or in 60 s without them"
    house.close()


def test_unknown_runs_are_refused(house, rooms):
    rooms.go.set()
    one, two = house.desk.submit(TABLES, "", "anna"), house.desk.submit(TABLES, "", "anna")
    for name, why in [("x", "see `insitu runs"), (one[:8], "2 runs begin with it"), ("", "see")]:
        with pytest.raises(Refusal, match=why) as refused:
            house.desk.status(name)
        assert refused.value.code == "NOT_FOUND"
    assert house.desk.status("last")["run"] == two
    house.until(one, "finished")
    house.until(two, "finished")


def test_whoever_waits_for_news_is_told(house, rooms):
    async def both():
        waiting = asyncio.create_task(house.desk.changed(5.0))
        await asyncio.sleep(0)
        began = time.monotonic()
        house.desk.changes()
        await waiting
        return time.monotonic() - began

    assert asyncio.run(both()) < 0.5


def test_void_rounds_are_tried_again_with_pauses_and_then_end_the_run(house, rooms, monkeypatch):
    monkeypatch.setattr("insitu.federation.live.FIRST_WAIT", 0.1)
    rooms.fails = True
    rooms.go.set()
    began = time.monotonic()
    run = house.desk.submit({**TABLES, "policy": {"retries": 2}}, "", "anna")
    told = house.until(run, "failed")
    assert time.monotonic() - began >= 0.1 + 0.2
    assert "round 1 was void 3 times" in told["reason"]
    assert house.rounds.discarded == 3
    assert house.rounds.failures == 9


def test_predictions_are_those_of_the_model(house, rooms):
    rooms.go.set()
    run = house.desk.submit(TABLES, "", "anna")
    house.until(run, "finished")
    x = clients().at(0).data.x[:9]
    told = wire.decode(house.desk.predict(run, wire.encode({"x": x}), "anna"))["y"]
    np.testing.assert_array_equal(told, expected().predict(x))
    assert house.ledger.audited()[-1]["what"] == "predict"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"no tree", "no tree with an array x"),
        (wire.encode({"y": np.zeros((2, 4))}), "no tree with an array x"),
        (wire.encode({"x": np.zeros(4)}), "one example a row"),
        (wire.encode({"x": np.full((1, 4), np.nan)}), "NaN or Inf"),
        (wire.encode({"x": np.zeros((2, 7))}), "has 7 features an example"),
    ],
)
def test_examples_that_are_none_are_refused(house, rooms, body, why):
    rooms.go.set()
    run = house.desk.submit({**TABLES, "run": {"rounds": 1}}, "", "anna")
    house.until(run, "finished")
    with pytest.raises(Refusal, match=why) as refused:
        house.desk.predict(run, body, "anna")
    assert refused.value.code == "BAD_REQUEST"


def test_why_a_run_waits_is_said_without_a_database_that_is_away(tmp_path, rooms, monkeypatch):
    """What was known before is told; nothing is asked of who cannot answer."""
    house = House(tmp_path, rooms, sites=3)
    house.enrol(*SITES)
    house.desk.begin()
    run = house.desk.submit(TABLES, "a", "anna")
    house.desk.order(run, "pause", "anna")
    paused, asked = house.desk.status(run), []
    waiting = house.desk.submit(TABLES, "b", "anna")

    def away(*args, **named):
        asked.append(args)
        raise StoreError("the database does not answer")

    try:
        with monkeypatch.context() as patch:
            house.desk.away = lambda: "it has not answered for 40 s: is it up?"
            for name in ("runs", "events", "record", "load"):
                patch.setattr(house.store, name, away)
            patch.setattr(house.desk, "_sites", away)
            assert house.desk.status(run) == paused
            told = house.desk.status(waiting)
        assert told["reason"] == "it has not answered for 40 s: is it up?"
        assert told["next"] == "it starts once the database answers"
        assert asked == []
    finally:
        house.desk.away = str
        house.close()


def test_an_order_that_waits_for_the_database_holds_up_nobody_who_looks(house, rooms, monkeypatch):
    run = house.desk.submit(TABLES, "", "anna")
    assert rooms.at_work.wait(10)
    asked, back = threading.Event(), threading.Event()
    mark = house.ledger.mark

    def held(*args):
        asked.set()
        assert back.wait(30)
        mark(*args)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(house.ledger, "mark", held)
        try:
            order = pool.submit(house.desk.order, run, "pause", "anna")
            assert asked.wait(10)
            looks = pool.submit(lambda: (house.desk.status(run), house.desk.listing(), house.desk.counted()))
            told, listed, counted = looks.result(10)
            assert told["status"] == listed[0]["status"] == "running"
            assert counted["running"] == 1
        finally:
            back.set()
        assert order.result(10) == "paused"
    house.until(run, "paused")


def test_rounds_of_a_run_that_rests_are_told_while_the_database_is_away(house, rooms, monkeypatch):
    rooms.go.set()
    run = house.desk.submit(TABLES, "a", "anna")
    finished = house.until(run, "finished")
    assert finished["committed"] == 3

    def away(*args, **named):
        raise StoreError("the database does not answer")

    monkeypatch.setattr(house.desk, "away", lambda: "it has not answered for 40 s: is it up?")
    with monkeypatch.context() as patch:
        patch.setattr(house.store, "runs", away)
        assert house.desk.status(run) == finished
    house.desk.end("another leads")
    house.desk.begin()  # of another process's run it knows how far it is
    with monkeypatch.context() as patch:
        patch.setattr(house.store, "runs", away)
        assert house.desk.status(run) == {**finished, "history": {}}


def test_a_run_at_work_does_not_predict(house, rooms):
    run = house.desk.submit(TABLES, "", "anna")
    assert rooms.at_work.wait(10)
    with pytest.raises(Refusal, match="is trained just now: pause it"):
        house.desk.predict(run, b"", "anna")
