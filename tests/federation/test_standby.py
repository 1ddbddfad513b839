"""Who leads: two of them on one ledger, quickened."""

from __future__ import annotations

import threading
import time

import pytest

from insitu.core.errors import Fenced, StoreError
from insitu.core.federation import Invitation
from insitu.federation.standby import Lead
from insitu.store.opened import open_ledger


class One:
    """A coordinator that only leads."""

    def __init__(self, folder, name, **options):
        self.ledger = open_ledger(folder / "federation.db")
        self.won, self.lost, self.said = threading.Event(), threading.Event(), []
        self.lead = Lead(
            self.ledger, name, lambda level, event, **fields: self.said.append((event, fields)),
            options.get("begin", self.won.set), lambda why: self.lost.set(), renew=0.05, lease=0.4,
        )  # fmt: skip

    def close(self, resign=True):
        self.lead.stop(resign)
        self.ledger.close()


@pytest.fixture
def make(tmp_path):
    made = []

    def one(name, **options):
        made.append(One(tmp_path, name, **options))
        return made[-1]

    yield one
    for each in made:
        each.close()


def test_the_second_takes_over_when_the_first_dies(make):
    first, second = make("a"), make("b")
    first.lead.start()
    assert first.won.wait(5)
    second.lead.start()
    assert not second.won.wait(0.6)
    assert second.lead.state == "waiting"
    first.close(resign=False)  # as if it had been killed
    began = time.monotonic()
    assert second.won.wait(5)
    assert time.monotonic() - began < 0.4 + 0.05 + 0.5


def test_one_that_ends_well_makes_room_at_once(make):
    first, second = make("a"), make("b")
    first.lead.start()
    assert first.won.wait(5)
    second.lead.start()
    time.sleep(0.1)
    first.close()
    assert second.won.wait(0.3)


def test_one_that_slept_is_fenced_and_ends(make):
    first, second = make("a"), make("b")
    first.lead.start()
    assert first.won.wait(5)
    real, asleep = first.ledger.lead, threading.Event()
    first.ledger.lead = lambda *args: asleep.wait(5) and real(*args)
    second.lead.start()
    assert second.won.wait(5)
    with pytest.raises(Fenced):
        first.ledger.invite(Invitation("t", "rome", "site", 1.0))
    asleep.set()
    assert first.lost.wait(5)
    assert first.lead.state == "lost"
    assert second.lead.leading


def test_a_database_that_is_away_is_waited_for(make):
    one = make("a")
    real = one.ledger.lead
    away = threading.Event()
    away.set()

    def lead(*args):
        if away.is_set():
            raise StoreError("the database is away")
        return real(*args)

    one.ledger.lead = lead
    one.lead.start()
    time.sleep(0.2)
    assert (one.lead.state, one.lead.trouble) == ("waiting", "the database is away")
    assert len(one.said) == 1  # said once, not at every attempt
    away.clear()
    assert one.won.wait(5)
    away.set()
    time.sleep(0.2)
    assert one.lead.leading  # nobody has taken over
    away.clear()


def test_one_that_cannot_begin_makes_room(make):
    def begin():
        raise ValueError("no")

    first, second = make("a", begin=begin), make("b")
    first.lead.start()
    assert first.lost.wait(5)
    second.lead.start()
    assert second.won.wait(5)
