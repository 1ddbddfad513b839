"""What every Ledger promises, tried with each class found in ``insitu.store``."""

import importlib
import inspect
import pkgutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

import insitu.store
from insitu.core import audit
from insitu.core.errors import Fenced, StoreError, TokenError
from insitu.core.federation import Call, CallKey, Entry, Invitation, Ledger, Member, Submitted
from insitu.core.protocols import Checkpoint
from insitu.store.opened import AT_ONCE, open_ledger, open_store

VERBS = [name for name in vars(Ledger) if not name.startswith("_")]
KEY = CallKey("a-run", 1, "train", 0)
MODEL, OTHER = "a" * 64, "b" * 64


def ledger_classes():
    """Those that say where things are kept: not what they have in common."""
    found = []
    for name in pkgutil.walk_packages(insitu.store.__path__, "insitu.store."):
        module = importlib.import_module(name.name)
        for _, one in inspect.getmembers(module, inspect.isclass):
            if one.__module__ == module.__name__ and all(hasattr(one, verb) for verb in VERBS):
                found.append(one)
    return [one for one in found if not any(issubclass(other, one) and other is not one for other in found)]


@pytest.fixture(params=ledger_classes(), ids=lambda one: one.__name__)
def place(request, tmp_path):
    """Where a new ledger of the class is kept, as ``open_ledger`` takes it."""
    if "url" in inspect.signature(request.param).parameters:
        return request.getfixturevalue("postgres").fresh()
    return str(tmp_path / "new folder" / "ledger.db")


@pytest.fixture
def open_one(place):
    """Opens the same ledger, for another process as it were, each time it is called."""
    opened = []

    def one():
        opened.append(open_ledger(place))
        return opened[-1]

    yield one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_one):
    return open_one()


def member(name="north", role="site", serial="01", **more):
    return Member(name, role, serial, 100.5, {"examples": 3, "features": ["ä", None]}, **more)


def accepted(seq, client, now=0.5):
    return Entry(seq, "accepted", client, now, {"manifest": MODEL, "bytes": 7})


def call(key=KEY, asked=("north", "south"), **more):
    return Call(key, list(asked), {"": MODEL}, 100.25, **more)


def test_classes_are_found():
    assert {one.__name__ for one in ledger_classes()} >= {"SqliteLedger", "PostgresLedger"}


# ------------------------------------------------------------ who belongs to it


def test_a_member_enrols_with_an_invitation_once(ledger, open_one):
    invitation = Invitation(MODEL, "north", "site", 200.0)
    ledger.invite(invitation)
    assert open_one().invitations() == [invitation]
    ledger.enrol(member(), MODEL, 150.0)
    assert open_one().members() == [member()]
    assert ledger.invitations() == [Invitation(MODEL, "north", "site", 200.0, used=150.0)]
    with pytest.raises(TokenError, match="'north' was used already"):
        ledger.enrol(member(serial="02"), MODEL, 160.0)
    with pytest.raises(StoreError, match="given before"):
        ledger.invite(invitation)
    assert ledger.members() == [member()]


@pytest.mark.parametrize(
    ("who", "token", "now", "why"),
    [
        (member(), OTHER, 150.0, "that 'north' shows is unknown"),
        (member(), MODEL, 200.0, "expired 0 s ago"),
        (member("south"), MODEL, 150.0, "for the site 'north', not for the site 'south'"),
        (member(role="operator"), MODEL, 150.0, "for the site 'north', not for the operator 'north'"),
    ],
)
def test_a_token_that_lets_nobody_in_changes_nothing(ledger, who, token, now, why):
    ledger.invite(Invitation(MODEL, "north", "site", 200.0))
    with pytest.raises(TokenError, match=why):
        ledger.enrol(who, token, now)
    assert ledger.members() == []
    assert ledger.invitations() == [Invitation(MODEL, "north", "site", 200.0)]


def test_of_many_who_show_one_token_at_once_one_is_let_in(ledger, open_one):
    ledger.invite(Invitation(MODEL, "north", "site", 200.0))
    doors = [open_one() for _ in range(4)]

    def enter(i):
        try:
            doors[i].enrol(member(serial=f"{i:02d}"), MODEL, 150.0)
        except (TokenError, StoreError):
            return 0
        return 1

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(enter, range(4))) == 1
    assert len(ledger.members()) == 1


def test_a_name_is_taken_until_it_is_revoked_and_a_serial_for_good(ledger):
    ledger.add_member(member())
    with pytest.raises(StoreError, match="'north' is a member already: revoke it first"):
        ledger.add_member(member(serial="02"))
    with pytest.raises(StoreError, match="certificate 01 of 'south' is that of 'north'"):
        ledger.add_member(member("south"))
    ledger.add_member(member("south", serial="03"))
    ledger.revoke("north", 170.0)
    ledger.revoke("north", 180.0)
    assert [one.revoked for one in ledger.members()] == [170.0, None]
    ledger.add_member(member(serial="02"))
    assert ledger.members() == [member(serial="02"), member("south", serial="03")]


def test_members_declare_and_renew(ledger, open_one):
    ledger.add_member(member())
    ledger.add_member(member("south", serial="02"))
    ledger.declare("north", {"examples": 9}, 120.0)
    ledger.renew("north", "0f")
    (north, _) = open_one().members()
    assert (north.declared, north.seen, north.serial, north.enrolled) == ({"examples": 9}, 120.0, "0f", 100.5)
    with pytest.raises(StoreError, match="0f of 'south' is that of 'north'"):
        ledger.renew("south", "0f")
    for verb, arguments in ((ledger.declare, ({}, 1.0)), (ledger.renew, ("0a",)), (ledger.revoke, (1.0,))):
        with pytest.raises(StoreError, match="no member 'east'"):
            verb("east", *arguments)


def test_what_another_has_changed_is_seen_and_a_list_is_its_askers(ledger, open_one):
    """Members are made anew only where their rows have changed, and they are changed by other processes too."""
    ledger.add_member(Member("berlin", "site", "01", 1.0))
    told = ledger.members()
    told.clear()
    assert [one.serial for one in ledger.members()] == ["01"]
    with open_one() as other:
        other.renew("berlin", "02")
        assert [one.serial for one in ledger.members()] == ["02"]
        other.declare("berlin", {"examples": 3}, 5.0)
        assert [(one.declared, one.seen) for one in ledger.members()] == [({"examples": 3}, 5.0)]
        other.revoke("berlin", 6.0)
        assert [one.revoked for one in ledger.members()] == [6.0]


def test_what_strangers_say_is_data(ledger):
    bad = "'; DROP TABLE members; -- {0} %s \x1b[31m\nß \U0001f3e5"
    ledger.add_member(Member(bad, "site", "01", 1.0, {bad: [bad, "\x00"]}))
    assert ledger.members() == [Member(bad, "site", "01", 1.0, {bad: [bad, "\x00"]})]


# ------------------------------------------------------------ what was asked for


def test_runs_stand_in_the_order_of_their_submission(ledger, open_one):
    first, second = (Submitted(run, {"run": {"rounds": 3}}, "ada", 100.0) for run in ("zebra", "ant"))
    ledger.submit(first)
    ledger.submit(second)
    with pytest.raises(StoreError, match="'zebra' was submitted already"):
        ledger.submit(first)
    assert open_one().submitted() == [first, second]
    ledger.mark("zebra", "failed", "no quorum")
    ledger.mark("ant", "running")
    assert [(one.status, one.reason) for one in ledger.submitted()] == [("failed", "no quorum"), ("running", "")]
    with pytest.raises(StoreError, match="no run 'bee' was submitted"):
        ledger.mark("bee", "running")


def test_sites_keep_their_places_in_a_run(ledger, open_one):
    ledger.admit("a-run", ["south", "north", "south"], 1)
    ledger.admit("another", ["north"], 1)
    ledger.admit("a-run", ["north", "east"], 4)
    ledger.admit("a-run", [], 5)
    assert open_one().roster("a-run") == [("south", 1), ("north", 1), ("east", 4)]
    assert ledger.roster("another") == [("north", 1)]
    assert ledger.roster("nobody") == []


# ------------------------------------------------------------ what was told


def test_calls_come_back_in_the_order_in_which_they_were_opened(ledger, open_one):
    keys = [CallKey("a-run", *rest) for rest in ((2, "train", 0), (1, "train", 1), (1, "evaluate", 0), (1, "train", 0))]
    for key in keys:
        ledger.open_call(call(key))
    ledger.open_call(call(CallKey("another", 1, "train", 0)))
    ledger.append(keys[1], [accepted(0, "south"), Entry(1, "failed", "north", 1.5, {"error": "\x1b\n"})])
    ledger.append(keys[1], [Entry(2, "closed", "", 2.0, {"reason": "all told"})])
    ledger.append(keys[3], [])
    found = open_one().calls("a-run")
    assert [one.key for one in found] == keys
    told = [accepted(0, "south"), Entry(1, "failed", "north", 1.5, {"error": "\x1b\n"})]
    assert found[1] == call(keys[1], entries=[*told, Entry(2, "closed", "", 2.0, {"reason": "all told"})])
    assert found[3] == call(keys[3], entries=[])
    assert ledger.calls("nobody") == []


def test_a_call_is_opened_once(ledger):
    ledger.open_call(call())
    with pytest.raises(StoreError, match="round 1: call 0 to train was opened already"):
        ledger.open_call(call(asked=("east",)))
    assert ledger.calls("a-run") == [call(entries=[])]


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([accepted(0, "south")], "goes on with entry 1, not 0"),
        ([accepted(2, "south")], "goes on with entry 1, not 2"),
        ([accepted(1, "south"), accepted(1, "east")], "goes on with entry 2, not 1"),
        ([accepted(1, "north")], "has an entry of 'north' already"),
        ([accepted(1, "south"), accepted(2, "south")], "has an entry of 'south' already"),
    ],
)
def test_a_number_and_a_client_stand_in_a_journal_once(ledger, entries, why):
    ledger.open_call(call())
    ledger.append(KEY, [accepted(0, "north")])
    with pytest.raises(StoreError, match=why):
        ledger.append(KEY, entries)
    assert ledger.calls("a-run") == [call(entries=[accepted(0, "north")])]


def test_nothing_is_appended_to_a_call_that_was_not_opened(ledger):
    with pytest.raises(StoreError, match="is not in the ledger: open it first"):
        ledger.append(KEY, [accepted(0, "north")])
    assert ledger.calls("a-run") == []


def test_two_who_append_the_same_number_at_once_do_not_both(ledger, open_one):
    """As two coordinators would, neither of which leads."""
    ledger.open_call(call())
    both = [ledger, open_one()]
    barrier = threading.Barrier(2)
    told = set()

    def race(i):
        won = 0
        for seq in range(10):
            barrier.wait()
            try:
                both[i].append(KEY, [accepted(seq, f"site-{seq}-{i}")])
                won += 1
            except StoreError as error:
                told.add("goes on with entry" in str(error))
        return won

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(race, range(2))) == 10
    assert told == {True}
    assert [entry.seq for entry in ledger.calls("a-run")[0].entries] == list(range(10))


def test_what_is_forgotten_is_of_old_rounds_and_ended_evaluations(ledger):
    keys = [
        CallKey("a-run", *rest)
        for rest in (
            (1, "train", 0), (2, "evaluate", 0), (2, "predict", 0), (2, "evaluate", 1), (2, "train", 0),
            (2, "predict", 1),
        )
    ]  # fmt: skip
    for key in keys:
        ledger.open_call(call(key))
        ledger.append(key, [accepted(0, "north")])
    ledger.open_call(call(CallKey("another", 1, "train", 0)))
    for key in (keys[1], keys[2], keys[4]):
        ledger.append(key, [Entry(1, "closed", "", 1.0)])
    ledger.forget("a-run", 2)
    assert [one.key for one in ledger.calls("a-run")] == keys[3:]
    assert [len(one.entries) for one in ledger.calls("a-run")] == [1, 2, 1]
    assert len(ledger.calls("another")) == 1
    again = call(keys[0], entries=[accepted(0, "north")])
    ledger.open_call(again)  # with what has happened in it
    assert ledger.calls("a-run")[-1] == again


def test_many_entries_are_one_transaction_and_any_thread_may_write(ledger):
    keys = [CallKey("a-run", 1, "train", number) for number in range(8)]

    def tell(key):
        ledger.open_call(call(key))
        ledger.append(key, [accepted(seq, f"site-{seq}") for seq in range(300)])
        return len(ledger.calls("a-run")) > 0

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(tell, keys))
    assert {one.key: len(one.entries) for one in ledger.calls("a-run")} == dict.fromkeys(keys, 300)


# ------------------------------------------------------------ documents and the trail


def test_a_document_is_kept_by_its_digest(ledger, open_one):
    assert ledger.document(MODEL) is None
    text = '{"a":"\\u0000' + "ä" * 10**5 + '"}'
    ledger.keep(MODEL, text, "a-run")
    ledger.keep(MODEL, text, "another")
    assert open_one().document(MODEL) == text


def test_a_document_goes_when_no_call_names_it(ledger, open_one):
    """What was told may be told in another run as well; an update's manifest is of one call."""
    one, two = CallKey("a-run", 1, "train", 0), CallKey("another", 1, "train", 0)
    update, plan, both = "e" * 64, "f" * 64, [MODEL, "e" * 64]
    for digest, run in ((MODEL, "a-run"), (update, "a-run"), (plan, "a-run"), (OTHER, "another")):
        ledger.keep(digest, "{}", run)
    for key in (one, two):
        ledger.open_call(replace(call(key), message={"north": MODEL, "south": MODEL}))
    ledger.append(one, [Entry(0, "accepted", "north", 1.0, {"manifest": update, "bytes": 8})])
    assert ledger.discard("a-run", both) == 0
    ledger.forget("a-run", 2)
    assert ledger.discard("a-run", both) == 1
    assert (open_one().document(MODEL), open_one().document(update)) == ("{}", None)
    assert ledger.discard("a-run") == 1  # the plan: nobody names that
    assert (ledger.document(plan), ledger.document(MODEL), ledger.document(OTHER)) == (None, "{}", "{}")
    ledger.forget("another", 2)
    assert ledger.discard("another", [MODEL, "0" * 64]) == 1  # whoever was the first to have it
    assert (ledger.document(MODEL), ledger.document(OTHER)) == (None, "{}")
    many = [f"{i:064x}" for i in range(1200)]
    for digest in many[:3]:
        ledger.keep(digest, "{}", "a-run")
    assert ledger.discard("a-run", many) == 3
    assert ledger.discard("a-run", []) == 0


def test_the_trail_is_chained_and_whole(ledger, open_one):
    ledger.audit([{"at": 100.1, "who": "ada", "what": "invited", "data": {"name": "\x1b\n", "n": [1, 2.5, None]}}])
    ledger.audit([])
    open_one().audit({"at": float(i), "who": "", "what": f"thing {i}"} for i in range(3))
    trail = ledger.audited()
    assert [entry["seq"] for entry in trail] == [1, 2, 3, 4]
    assert trail[0]["data"] == {"name": "\x1b\n", "n": [1, 2.5, None]}
    assert audit.verify(trail) is None
    assert ledger.audited(after=1, limit=2) == trail[1:3]
    assert audit.verify(ledger.audited(after=2)) is None


# ------------------------------------------------------------ who may write


def writes(ledger):
    """Every method that writes, with arguments that would do, after what they need is there."""
    return {
        "invite": lambda: ledger.invite(Invitation(OTHER, "east", "site", 1.0)),
        "enrol": lambda: ledger.enrol(member("west", serial="09"), MODEL, 1.0),
        "add_member": lambda: ledger.add_member(member("east", serial="08")),
        "declare": lambda: ledger.declare("north", {}, 9.0),
        "renew": lambda: ledger.renew("north", "0f"),
        "revoke": lambda: ledger.revoke("north", 9.0),
        "submit": lambda: ledger.submit(Submitted("b-run", {}, "ada", 1.0)),
        "mark": lambda: ledger.mark("a-run", "failed"),
        "admit": lambda: ledger.admit("a-run", ["east"], 1),
        "open_call": lambda: ledger.open_call(call(CallKey("a-run", 2, "train", 0))),
        "append": lambda: ledger.append(KEY, [accepted(0, "north")]),
        "forget": lambda: ledger.forget("a-run", 9),
        "keep": lambda: ledger.keep(OTHER, "{}", "a-run"),
        "discard": lambda: ledger.discard("a-run"),
        "audit": lambda: ledger.audit([{"at": 1.0, "who": "", "what": "x"}]),
    }


def prepared(ledger):
    ledger.invite(Invitation(MODEL, "west", "site", 200.0))
    ledger.add_member(member())
    ledger.submit(Submitted("a-run", {}, "ada", 1.0))
    ledger.open_call(call())


def everything(ledger):
    return (
        ledger.invitations(),
        ledger.members(),
        ledger.submitted(),
        ledger.roster("a-run"),
        ledger.calls("a-run"),
        ledger.document(OTHER),
        ledger.audited(),
    )


def test_every_method_is_known_to_read_or_to_write(ledger):
    reads = {"invitations", "members", "submitted", "roster", "calls", "document", "audited", "leader"}
    assert {*writes(ledger), *reads, "lead", "resign", "close"} == set(VERBS)


def test_one_leads_at_a_time_and_hands_over(open_one):
    one, other = open_one(), open_one()
    assert one.leader() is None
    assert one.lead("one", 30.0)
    assert one.lead("one", 60.0)
    assert not other.lead("other", 60.0)
    holder, left = other.leader()
    assert holder == "one"
    assert 55.0 < left <= 60.0
    first = one.epoch
    one.resign()
    assert other.leader() is None
    assert other.lead("other", 60.0)
    assert other.epoch > first
    other.resign()
    one.resign()  # changes nothing: it does not lead
    assert one.lead("one", 60.0)
    assert one.leader()[0] == "one"


def test_a_leader_that_slept_past_its_lease_writes_nothing(place, open_one):
    asleep, other = open_one(), open_one()
    assert asleep.lead("asleep", 0.05)
    prepared(asleep)
    with open_store(place, ledger=asleep, behind=AT_ONCE) as stale, open_store(place, behind=AT_ONCE) as reader:
        stale.create("a-run", {"seed": 1})
        stale.commit("a-run", Checkpoint(1, {"w": 1}, {}, {}))
        time.sleep(0.06)
        asleep.declare("north", {"examples": 4}, 1.0)  # past its lease, but nobody has taken over
        assert other.lead("other", 60.0)
        before = everything(other)
        for name, write in writes(asleep).items():
            with pytest.raises(Fenced, match="'other' leads it now, and nothing was written"):
                write()
            assert everything(other) == before, name
        for write in (
            lambda: stale.commit("a-run", Checkpoint(2, {"w": 2}, {}, {})),
            lambda: stale.create("b-run", {}),
            lambda: stale.update("a-run", seed=2),
            lambda: stale.rewind("a-run", 0),
        ):
            with pytest.raises(Fenced):
                write()
        assert (reader.load("a-run").round, reader.record("a-run")["seed"], len(reader.runs())) == (1, 1, 1)
        assert not asleep.lead("asleep", 60.0)
        for write in writes(other).values():
            write()
        other.resign()
        assert asleep.lead("asleep", 60.0)
        stale.flush()
        assert reader.load("a-run").round == 2


def test_a_database_whose_clock_jumps_changes_its_leader_no_sooner(open_one, monkeypatch):
    """Forward, while the leader goes on to renew its lease; and back, once it has died."""
    leader, standby = open_one(), open_one()
    ahead, real = 0.0, type(leader._database).now
    monkeypatch.setattr(type(leader._database), "now", lambda self, connection: real(self, connection) + ahead)
    assert leader.lead("leader", 60.0)
    assert not standby.lead("standby", 60.0)
    ahead = 3600.0
    assert not standby.lead("standby", 60.0)
    assert leader.lead("leader", 60.0)  # renewed by the new time
    assert not standby.lead("standby", 60.0)
    ahead = 7200.0
    assert leader.lead("leader", 60.0)
    ahead = 10800.0
    assert not standby.lead("standby", 60.0)  # has not seen the last renewal either
    assert not standby.lead("standby", 60.0)
    assert leader.lead("leader", 0.2)
    assert not standby.lead("standby", 0.2)
    ahead = 0.0  # three hours are left of the lease now, by this clock
    assert standby.leader()[1] > 10000
    assert not standby.lead("standby", 0.2)
    time.sleep(0.25)
    assert standby.lead("standby", 60.0)
    assert not leader.lead("leader", 60.0)


def test_who_never_led_writes_only_while_nobody_leads(open_one):
    founder = open_one()
    prepared(founder)
    leader = open_one()
    assert leader.lead("leader", 60.0)
    before = everything(leader)
    for write in writes(founder).values():
        with pytest.raises(Fenced, match=r"is led by 'leader' for [56].* s more: ask it"):
            write()
    assert everything(leader) == before
    leader.resign()
    with pytest.raises(Fenced, match="this process has resigned"):
        leader.add_member(member("east", serial="08"))
    founder.add_member(member("east", serial="08"))


def test_a_process_takes_over_from_its_predecessor_of_the_same_name_at_once(open_one):
    killed, restarted = open_one(), open_one()
    assert killed.lead("coordinator", 60.0)
    assert restarted.lead("coordinator", 60.0)
    with pytest.raises(Fenced):
        killed.add_member(member())
    assert not killed.lead("coordinator", 60.0)
    restarted.add_member(member())


def test_renewing_from_one_thread_while_another_writes(open_one):
    ledger = open_one()
    assert ledger.lead("one", 60.0)
    ledger.open_call(call())
    with ThreadPoolExecutor(2) as threads:
        renewed = threads.submit(lambda: [ledger.lead("one", 60.0) for _ in range(20)])
        for seq in range(20):
            ledger.append(KEY, [accepted(seq, f"site-{seq}")])
        assert all(renewed.result())
    assert ledger.epoch == 1
