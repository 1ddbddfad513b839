"""Clients that were announced are loaded ahead; what is asked for is the same, whoever loads it."""

import threading
from collections import Counter

import cloudpickle
import numpy as np
import pytest
from data_cases import equal_runs

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core.errors import RoundError
from insitu.core.types import Client, Data, Schema
from insitu.data import Clients
from insitu.data.holdout import Holdout
from insitu.data.prefetch import Prefetch

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2
BYTES = X.nbytes + Y.nbytes


class Loader:
    """Clients by place; remembers who was loaded by which thread, and lets a test wait for a load."""

    def __init__(self):
        self.seen: list[tuple[int, int]] = []
        self.turn = threading.Condition()

    def __call__(self, place):
        with self.turn:
            self.seen.append((place, threading.get_ident()))
            self.turn.notify_all()
        if place == 13:
            raise OSError("the disk is gone")
        return Client(str(place), Data(X + place, Y))

    def wait_for(self, place):
        with self.turn:
            assert self.turn.wait_for(lambda: place in self.places, timeout=30)

    @property
    def places(self):
        return [place for place, _ in self.seen]


@pytest.fixture
def load():
    return Loader()


def ended():
    for thread in threading.enumerate():
        if thread.name == "insitu prefetch":
            thread.join(30)
            assert not thread.is_alive()


def test_the_next_is_loaded_while_this_one_is_used(load):
    ahead = Prefetch(load)
    ahead.announce([3, 1, 2])
    assert load.places == []
    ahead.at(3)
    load.wait_for(2)  # without anybody asking for it
    assert [ahead.at(place).id for place in (1, 2)] == ["1", "2"]
    assert load.places == [3, 1, 2]
    here = threading.get_ident()
    assert [thread == here for _, thread in load.seen] == [True, False, False]
    ended()


def test_no_further_than_the_budget(load):
    ahead = Prefetch(load, budget=2 * BYTES)
    ahead.announce(range(10))
    ahead.at(0)
    load.wait_for(2)
    walk = ahead._walk
    with walk._turn:
        walk._turn.wait_for(lambda: len(walk._ready) == 2, timeout=30)
        assert (sorted(walk._ready), walk._busy) == ([1, 2], set())
    assert load.places == [0, 1, 2]
    assert ahead.at(1).id == "1"
    load.wait_for(3)
    assert [ahead.at(place).id for place in range(2, 10)] == [str(place) for place in range(2, 10)]
    assert Counter(load.places) == Counter(range(10))
    ended()


def test_several_threads_load_at_a_time():
    both = threading.Barrier(2, timeout=30)

    def load(place):
        if place in (1, 2):
            both.wait()  # nobody gets on alone
        return Client(str(place), Data(X + place, Y))

    ahead = Prefetch(load, threads=2)
    ahead.announce(range(6))
    assert [ahead.at(place).id for place in (0, 3, 4, 5, 1, 2)] == list("034512")
    ended()


def test_one_larger_than_the_budget(load):
    ahead = Prefetch(load, budget=1)
    ahead.announce(range(5))
    assert [ahead.at(place).id for place in range(5)] == list("01234")
    ended()


def test_any_order_and_any_other_place(load):
    ahead = Prefetch(load, budget=BYTES)
    ahead.announce(range(6))
    for place in (5, 0, 4, 99, 0, 3, 1, 2):
        assert ahead.at(place).data.x[0, 0] == place
    ended()


def test_an_error_is_its_clients(load):
    ahead = Prefetch(load)
    ahead.announce([1, 13, 2])
    ahead.at(1)
    load.wait_for(2)
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.at(13)
    assert ahead.at(2).id == "2"
    ended()


def test_what_was_announced_before_is_let_go(load):
    ahead = Prefetch(load, budget=BYTES)
    ahead.announce(range(10))
    ahead.at(0)
    load.wait_for(1)
    first = ahead._walk
    ahead.announce(())
    ended()
    assert first._ready == {}
    assert ahead.at(5).id == "5"
    assert max(load.places) == 5


def test_what_is_ready_is_kept_where_it_is_announced_again(load):
    ahead = Prefetch(load)
    ahead.announce([0, 1, 2, 3])
    ahead.at(0)
    load.wait_for(3)
    ahead.announce([2, 3, 4, 5])  # the next block, and the one after it
    assert [ahead.at(place).id for place in (2, 3, 4, 5)] == list("2345")
    assert Counter(load.places) == Counter(range(6))
    ahead.announce([5])
    assert ahead.at(5).id == "5"
    assert load.places.count(5) == 2
    ended()


def test_the_disk_is_told_further_ahead_than_is_read(load, monkeypatch):
    monkeypatch.setattr("insitu.data.prefetch.NAMED", 250)
    told = []

    def soon(place):
        told.append((place, len(load.places)))
        if place == 7:
            raise OSError("the disk is gone")
        return 100

    ahead = Prefetch(load, soon=soon)
    ahead.announce(range(10))
    assert told == []
    ahead.at(0)
    load.wait_for(9)
    places = [place for place, _ in told]
    assert places == sorted(set(places))  # each once, in order
    assert places[-1] >= 7
    # Before the thread has loaded anything (0 may have been, here), three clients of 100 bytes are named.
    assert sum(loads <= 1 for _, loads in told) >= 3
    assert [ahead.at(place).id for place in range(1, 10)] == [str(place) for place in range(1, 10)]
    ended()


def test_lazy_clients_do_so_when_told():
    asked = []

    def load(i):
        asked.append(threading.get_ident())
        return X + i, Y

    for prefetch in (False, True):
        clients = Clients.lazy(range(4), load, schema=Schema((2,), np.arange(2)), prefetch=prefetch)
        clients.ahead(range(4))
        there = cloudpickle.loads(cloudpickle.dumps(clients))
        for same in (clients, there):
            assert [same.at(place).data.x[0, 0] for place in range(4)] == [0, 1, 2, 3]
        ended()


@pytest.mark.parametrize("engine", ["inline", "vectorized"])
def test_a_run_announces_and_gives_the_same_bits(engine):
    threads = set()

    def load(i):
        threads.add(threading.current_thread().name)
        return X + i, Y

    def clients(prefetch):
        return Clients.lazy(range(9), load, schema=Schema((2,), np.arange(2)), holdout=0.3, prefetch=prefetch)

    equal_runs(clients(True), clients(False), engine)
    assert "insitu prefetch" in threads
    ended()


# ------------------------------------------------------------ from round to round


class Counted:
    """Clients that are loaded ahead, who loaded them, and which round it was then."""

    def __init__(self, n=12):
        self.round, self.loads, self.broken = 0, [], set()
        self.clients = Clients.lazy(
            range(n), self.load, [6] * n, schema=Schema((2,), np.arange(2)), prefetch=True, holdout=0.0
        )

    def load(self, i):
        if self.round:  # the first client is looked at before the run
            self.loads.append((self.round, i, threading.current_thread().name))
        if (self.round, i) in self.broken:
            raise OSError("gone")
        return X + i, Y

    def __call__(self, event):
        if type(event).__name__ == "RoundStarted":
            self.round = event.round
        if type(event).__name__ in ("RoundCommitted", "RoundDiscarded"):
            # Whoever was named for the next round is waited for, so that the test does not depend on the clock.
            walk = self.clients._prefetch and self.clients._prefetch._walk
            if walk is not None:
                with walk._turn:
                    assert walk._turn.wait_for(lambda: not walk._order and not walk._busy, timeout=30)


def trained(counted, rounds, **options):
    torch = pytest.importorskip("torch")
    from insitu.learners.torch import TorchLearner

    torch.manual_seed(1)
    given = {"cohort": insitu.Uniform(4), "evaluate_every": 0, **options}
    plan = insitu.Plan(FedAvg(lr=0.1, batch_size=3), TorchLearner(torch.nn.Linear(2, 2)), **given)
    result = insitu.run(plan, counted.clients, rounds=rounds, engine="inline", seed=5, store=None, observers=[counted])
    ended()
    return result, plan


def cohorts(plan, rounds, population=12):
    return [plan.cohort.sample(population, 5, round).tolist() for round in range(1, rounds + 1)]


def test_the_next_rounds_clients_are_read_while_this_one_trains():
    counted = Counted()
    _, plan = trained(counted, 4)
    asked = cohorts(plan, 4)
    # By the end of a round the next one's are there, and after the last nobody is read.
    for round in (1, 2, 3):
        until = [place for when, place, _ in counted.loads if when <= round]
        # Whoever takes part in both is read again, when this round has used it.
        assert set(until) >= set(asked[round]) - set(asked[round - 1])
    everyone = Counter(place for _, place, _ in counted.loads)
    everyone.subtract(Counter(place for cohort in asked for place in cohort))
    assert not +everyone, "more was read than was used"
    assert all(name == "insitu prefetch" for when, place, name in counted.loads if place not in asked[when - 1])


def test_a_void_round_was_read_ahead_for_nothing_and_does_no_harm():
    counted, alone = Counted(), Counted()
    counted.broken = {(1, place) for place in insitu.Uniform(4).sample(12, 5, 1).tolist()}
    alone.broken, alone.clients._prefetch = counted.broken, None
    options = {"policy": insitu.Policy(quorum=0.25, retries=3)}
    one, _ = trained(counted, 3, **options)
    other, _ = trained(alone, 3, **options)
    assert {round for round, _, _ in counted.loads} == {1, 2, 3}
    for name, value in one.variables.shared.items():
        assert value.equal(other.variables.shared[name])


def test_before_clients_evaluate_nobody_is_read_for_the_round_after():
    counted = Counted()
    counted.clients._source.holdout = Holdout(0.3, 0)
    _, plan = trained(counted, 3, evaluate_every=2, evaluate_cohort=insitu.Uniform(1))
    asked = cohorts(plan, 3)
    ahead = [{place for when, place, _ in counted.loads if when == round} - set(asked[round - 1]) for round in (1, 2)]
    assert ahead[0] >= set(asked[1]) - set(asked[0])
    assert len(ahead[1]) <= 1  # the one that evaluates


def test_a_run_that_fails_lets_go_of_what_was_read():
    counted = Counted()
    counted.broken = {(2, place) for place in range(12)}
    with pytest.raises(RoundError, match="round 2 was void 1 time"):
        trained(counted, 3, policy=insitu.Policy(quorum=1.0, retries=0))
    ended()
    assert counted.clients._prefetch._walk is None
