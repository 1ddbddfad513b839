"""Who a certificate belongs to: by the ledger, without asking it for every request."""

from __future__ import annotations

import pytest

from insitu.core.errors import Refusal
from insitu.core.federation import Member
from insitu.engines.https.api.people import People
from insitu.engines.https.authority.certificates import renewed_serial
from insitu.store.opened import open_ledger


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(tmp_path / "federation.db") as opened:
        opened.add_member(Member("berlin", "site", "ab12", 1.0))
        yield opened


@pytest.fixture
def people(ledger):
    made = People(
        ledger, lambda who, what, data: made.notes.append((who, what)), lambda serials: made.cut.append(serials)
    )
    made.notes, made.cut = [], []
    made.refresh()
    return made


def code(people, serial, name):
    with pytest.raises(Refusal) as refused:
        people(serial, name)
    return refused.value.code


def test_a_member_is_known_by_its_serial_and_name(people):
    peer = people("ab12", "berlin")
    assert (peer.name, peer.role, peer.serial) == ("berlin", "site", "ab12")
    assert code(people, "ab12", "paris") == "UNKNOWN_CERTIFICATE"
    assert code(people, "ab13", "berlin") == "UNKNOWN_CERTIFICATE"
    assert people.notes == []  # those who were there before are no news


def test_a_revocation_counts_from_the_next_look_on_and_cuts(people, ledger):
    ledger.revoke("berlin", 5.0)
    people.refresh()
    assert code(people, "ab12", "berlin") == "REVOKED"
    assert people.cut == [["ab12"]]


def test_new_members_are_noted_once(people, ledger):
    ledger.add_member(Member("paris", "site", "cd", 1.0))
    people.refresh()
    people.refresh()
    assert people.notes == [("paris", "enrol")]
    assert people("cd", "paris").role == "site"


def test_a_look_that_finds_nothing_new_is_a_look(people, ledger):
    before = people.read
    people.refresh()
    assert people.read > before
    assert people("ab12", "berlin").name == "berlin"
    ledger.revoke("berlin", 5.0)  # the look before it must not hide it
    people.refresh()
    assert code(people, "ab12", "berlin") == "REVOKED"


def test_a_renewed_certificate_takes_the_old_ones_place_when_it_is_shown(people, ledger):
    new = f"{renewed_serial('ab12'):x}"
    assert people("ab12", "berlin").serial == "ab12"
    assert code(people, new, "paris") == "UNKNOWN_CERTIFICATE"
    assert people(new, "berlin").role == "site"
    assert code(people, "ab12", "berlin") == "UNKNOWN_CERTIFICATE"
    people.refresh()
    assert [member.serial for member in ledger.members()] == [new]
    assert people.notes == [("berlin", "renew")]
    assert people.cut == []
    again = f"{renewed_serial('ab12'):x}"
    assert code(people, again, "berlin") == "UNKNOWN_CERTIFICATE"  # of the first one, which counts no more


def test_a_revoked_member_cannot_come_back_by_renewal(people, ledger):
    ledger.revoke("berlin", 5.0)
    people.refresh()
    assert code(people, f"{renewed_serial('ab12'):x}", "berlin") == "UNKNOWN_CERTIFICATE"


def test_a_ledger_that_is_away_leaves_what_was_known(people, ledger, monkeypatch):
    from insitu.core.errors import StoreError

    def away():
        raise StoreError("the database is away")

    monkeypatch.setattr(ledger, "members", away)
    assert people.try_refresh() == "the database is away"
    assert people("ab12", "berlin").name == "berlin"


def test_before_the_first_look_nobody_is_turned_away_for_good(ledger):
    people = People(ledger, lambda who, what, data: None)
    assert code(people, "ab12", "berlin") == "BUSY"  # which a site tries again, as it does not with the others
    people.refresh()
    assert people("ab12", "berlin").name == "berlin"
