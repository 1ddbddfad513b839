"""Why is it waiting? The answer in words, case by case."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from insitu.core.errors import StoreError
from insitu.federation.metrics import Rounds
from insitu.federation.status import compose, duration, lines, site_lines, whole_lines
from insitu.federation.watching import Watching

BERLIN = {"site": "berlin", "since": 12.0, "phase": "training", "last_contact": 3.0, "deadline_in": 48.0, "done": 0.4}
PARIS = {"site": "paris", "since": 12.0, "phase": None, "last_contact": 300.0, "deadline_in": 48.0}
CALL = {"asked": 4, "accepted": 2, "failed": 0, "deadline_in": 48.0, "waiting_for": [BERLIN, PARIS]}


def told(status="running", reason="", **options):
    given = {"committed": 11, "of": 50, "call": {}, **options}
    return compose("r1", status, reason, **given)


def test_a_round_that_waits_names_the_sites():
    assert lines(told(call=CALL, history={"round": 11, "clients": 4, "loss": 0.25, "accuracy": 0.9})) == [
        "run r1: running, 11 of 50 rounds",
        "  round 12: waiting for sites: 2 of 4 sites have answered",
        "  waiting for berlin: training (40%), heard 3 s ago, asked 12 s ago, deadline in 48 s",
        "  waiting for paris: not asked yet, not heard for 5 min: is it running, and online?, asked 12 s ago, deadline"
        " in 48 s",
        "  next: round 12 ends when they have answered, or in 48 s, with the quorum or not at all",
        "  last: round 11, 4 sites, loss 0.2500, accuracy 0.9000",
    ]


def test_without_a_deadline_it_says_that_there_is_none():
    call = {**CALL, "deadline_in": None, "failed": 1, "waiting_for": [{"site": "rome", "last_contact": None}]}
    found = lines(told(call=call))
    assert found[1].endswith("2 of 4 sites have answered, 1 failed")
    assert found[2] == "  waiting for rome: not asked yet, never heard since this coordinator started"
    assert found[3].endswith("ends when they have answered; there is no deadline ([policy] deadline)")


def test_void_attempts_are_counted():
    assert "  2 attempts of round 12 were void; more than 3 stop the run" in lines(told(call=CALL, voids=2, retries=3))


@pytest.mark.parametrize(
    ("status", "options", "next"),
    [
        ("queued", {}, "it starts when there is room for it"),
        ("queued", {"starting": "it starts when rome has connected"}, "it starts when rome has connected"),
        ("paused", {}, "`insitu resume r1` goes on with round 12"),
        ("stopping", {}, "it stops as soon as its engine lets go"),
        ("stopped", {}, "nothing; `insitu resume r1` tries again from round 12"),
        ("failed", {}, "nothing; `insitu resume r1` tries again from round 12"),
        ("finished", {"committed": 50}, "nothing: all rounds are done"),
        ("running", {}, "round 12 is opened"),
        ("running", {"call": {**CALL, "waiting_for": []}}, "round 12 is folded and committed"),
        ("running", {"call": {**CALL, "next": "round 12 is unmasked"}}, "round 12 is unmasked"),
    ],
)
def test_what_comes_next(status, options, next):
    assert told(status, **options)["next"] == next


def test_what_holds_the_coordinator_up_is_the_reason():
    found = lines(told(trouble="federation.db cannot be written: free some space"))
    assert found[1] == "  because: federation.db cannot be written: free some space"
    assert found[2] == "  round 12: held up"
    assert found[3].endswith("round 12 goes on once that is mended; it is tried again by itself")


def test_a_void_round_is_tried_again_after_a_while():
    assert told(again=3.6, voids=1, retries=3)["next"] == "round 12 was void, and is tried again in 4 s"


def test_nobody_is_waited_for_in_a_run_that_rests():
    assert told("paused", "by anna", call=CALL)["waiting_for"] == []


def test_a_federation_as_a_whole():
    sites = [
        {"name": "berlin", "role": "site", "connected": True, "doing": "training", "last_contact": 2.0,
         "declared": {"data": {"examples": 303}}},
        {"name": "paris", "role": "site", "connected": False, "last_contact": 7200.0},
        {"name": "rome", "role": "site", "connected": False, "last_contact": None},
        {"name": "gone", "role": "site", "revoked": 5.0},
        {"name": "anna", "role": "operator"},
    ]  # fmt: skip
    whole = {"name": "my-study", "leader": "host:8443", "wrong": {"disk": "12 MB are free"}, "sites": sites}
    assert whole_lines(whole, []) == [
        "federation my-study: led by host:8443",
        "  not ready: disk: 12 MB are free",
        "  site berlin: training, heard 2 s ago, 303 examples",
        "  site paris: not connected, heard 2 h ago",
        "  site rome: not connected",
        "no run is queued, running or paused: `insitu submit plan.toml` starts one",
    ]
    assert whole_lines(whole, [told("queued")])[-2:] == [
        "run r1: queued, 11 of 50 rounds", "  next: it starts when there is room for it",
    ]  # fmt: skip
    assert site_lines([]) == ["no site is enrolled: `insitu federation invite NAME` lets one in"]


def test_a_coordinator_without_its_database_says_what_it_remembers():
    site = {"name": "berlin", "role": "site", "connected": True, "doing": "training", "last_contact": 2.0}
    whole = {"name": "my-study", "leader": None, "wrong": {"database": "it has not answered for 20 s"}, "sites": [site]}
    run = told(call=CALL, trouble="it has not answered for 20 s")
    found = whole_lines(whole, [run])
    assert found[:4] == [
        "federation my-study: this coordinator has no database",
        "  not ready: database: it has not answered for 20 s",
        "  site berlin: training, heard 2 s ago",
        "run r1: running, 11 of 50 rounds",
    ]
    assert found[4] == "  because: it has not answered for 20 s"
    assert whole_lines({**whole, "sites": []}, []) == found[:2]  # and not that nobody is enrolled, and nothing runs


class Away:
    """A ledger whose database is away."""

    def leader(self):
        raise StoreError("the database cannot be read: is it up?")


@pytest.mark.parametrize("trouble", ["", "the lead cannot be renewed: is it up?"])
def test_what_is_remembered_is_told_while_the_database_is_away(tmp_path, trouble):
    """Found out by asking, or known before: then it is not even asked."""
    contacts = {"berlin": {"connected": True, "last_contact": 2.0, "doing": "training"}}
    runs = [{"run": "r2", "status": "running"}, {"run": "r1", "status": "finished"}]
    lead = SimpleNamespace(trouble=trouble, quiet=lambda: 0.0, leading=True)
    desk = SimpleNamespace(listing=lambda remembered: runs if remembered else 1 / 0)
    ledger = None if trouble else Away()
    watching = Watching("study", tmp_path, ledger, lead, desk, lambda: contacts, dict, dict, Rounds())
    told = watching.whole()
    assert told["wrong"]["database"] == (trouble or "the database cannot be read: is it up?")
    assert (told["leader"], [one["run"] for one in told["runs"]]) == (None, ["r2"])
    assert site_lines(told["sites"]) == ["site berlin: training, heard 2 s ago"]
    assert watching.remembered({})["wrong"] == {"database": "it does not answer: is it up?"}
    assert watching.away() == trouble
    lead.quiet = lambda: 60.0
    assert watching.away() == (trouble or "it has not answered for 60 s: is it up?")


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (99.4, "99 s"), (150, "2 min"), (7200, "2 h"), (300_000, "3 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
