"""What becomes of clients: closed forms, order statistics by a loop of its own, and when a round can open."""

from __future__ import annotations

import math
import random
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedsgd import FedSGD
from insitu.algorithms.kmeans import KMeans
from insitu.core.batches import batches
from insitu.core.errors import PlanError, RoundError
from insitu.rounds.world import Availability, LogNormal, Spells, Trace, World
from insitu.rounds.world.crowd import Crowd, examples_of, sizes_of


class Many:
    """Clients of 1, 2, 3, … examples; their sizes are known without loading them, or not."""

    def __init__(self, n, known=True):
        self.n, self.known, self.loaded = n, known, []

    def __len__(self):
        return self.n

    def id_at(self, place):
        return f"c{place}"

    def size_at(self, place):
        return place + 1 if self.known else None

    def at(self, place):
        from insitu import Client, Data

        self.loaded.append(place)
        if place == 2:
            raise OSError("gone")
        return Client(f"c{place}", Data(np.zeros((place + 1, 2)), np.zeros(place + 1)))


def test_three_parts_one_after_another():
    """100 B at 50 B/s, 30 examples at 10 a second, 20 B at 5 B/s."""
    crowd = Crowd(World(speed=10, down=50, up=5), Many(3), 0)
    fates = crowd.fates(1, np.arange(3), np.array([30.0, 0.0, 10.0]), 100, 20, 0.0)
    np.testing.assert_array_equal(fates.seconds, [2 + 3 + 4, 6, 7])
    assert fates.answers.all()
    for until, down, up in ((0.0, 0, 0), (1.0, 0.5, 0), (4.0, 1, 0), (7.0, 1, 0.5), (9.0, 1, 1), (99.0, 1, 1)):
        got, sent = fates.shares_sent(until)
        assert (got[0], sent[0]) == (down, up)


def test_what_is_not_given_takes_no_time():
    fates = Crowd(World(), Many(3), 0).fates(1, np.arange(3), np.ones(3), 100, 20, 0.0)
    np.testing.assert_array_equal(fates.seconds, 0)
    assert [share.tolist() for share in fates.shares_sent(0.0)] == [[1, 1, 1], [1, 1, 1]]


def test_a_device_stays_and_jitter_changes():
    places, work = np.arange(20_000), np.full(20_000, 60.0)
    plain, shaken = (Crowd(World(speed=LogNormal(2.0, 0.5), jitter=jitter), Many(20_000), 3) for jitter in (0.0, 0.25))
    a, b = (plain.fates(draw, places, work, 0, 0, 0.0).seconds for draw in (1, 2))
    np.testing.assert_array_equal(a, b)
    c, d = (shaken.fates(draw, places, work, 0, 0, 0.0).seconds / a for draw in (1, 2))
    assert (c != d).all()
    assert stats.kstest(np.log(c) / 0.25, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(np.log(c), np.log(d))[0, 1]) < 0.03


def test_dropping_out_in_the_middle():
    places, work = np.arange(20_000), np.full(20_000, 100.0)
    fates = Crowd(World(speed=1.0, dropout=0.3), Many(20_000), 3).fates(1, places, work, 0, 0, 50.0)
    assert (~fates.answers).mean() == pytest.approx(0.3, abs=0.015)
    assert stats.kstest(fates.seconds[~fates.answers] / 100, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(fates.seconds[fates.answers], 100.0)


def test_a_client_whose_spell_ends_is_lost_then(tmp_path):
    (tmp_path / "t.csv").write_text("device,start,end\nc0,0,100\nc1,0,30\nc2,0,55\n")
    crowd = Crowd(World(speed=1.0, available=Trace(tmp_path / "t.csv", by="id")), Many(3), 0)
    fates = crowd.fates(1, np.arange(3), np.array([35.0] * 3), 0, 0, 20.0)
    np.testing.assert_array_equal(fates.seconds, [35, 10, 35])
    np.testing.assert_array_equal(fates.answers, [True, False, True])


@pytest.mark.parametrize(("wanted", "asked"), [(10, 10), (10, 13), (1, 5)])
def test_order_statistics_of_log_normals(wanted, asked):
    """The mean moment of the wanted-th arrival: through the crowd, and by the standard library in a loop by hand."""
    crowd = Crowd(World(speed=LogNormal(2.0, 0.5)), Many(100_000), 1)
    found = [
        np.sort(
            crowd.fates(0, np.arange(r * asked, (r + 1) * asked), np.full(asked, 60.0), 0, 0, 0.0).seconds
        )[wanted - 1]
        for r in range(2000)
    ]  # fmt: skip
    chance, by_hand = random.Random(0), []
    for _ in range(2000):
        seconds = sorted(60.0 / chance.lognormvariate(math.log(2.0), 0.5) for _ in range(asked))
        by_hand.append(seconds[wanted - 1])
    error = np.sqrt((np.var(found) + np.var(by_hand)) / 2000)
    assert np.mean(found) == pytest.approx(np.mean(by_hand), abs=4 * error)
    assert error / np.mean(by_hand) < 0.03


# ------------------------------------------------------------ how much work it is


@given(st.integers(1, 40), st.none() | st.integers(1, 12), st.none() | st.integers(1, 3), st.integers(1, 9))
def test_examples_are_those_of_the_batches(size, batch_size, epochs, steps):
    """Against the batches that clients really work through."""
    method = FedAvg(batch_size=batch_size, epochs=epochs, steps=None if epochs else steps)
    cut = batches(size, batch_size, epochs, None if epochs else steps, seed=0, round=1, client="a")
    assert examples_of(method, np.array([float(size)]))[0] == sum(len(batch) for batch in cut)


def test_examples_of_other_methods():
    sizes = np.array([5.0, 50.0])
    np.testing.assert_array_equal(examples_of(KMeans(k=2), sizes), sizes)
    np.testing.assert_array_equal(examples_of(FedSGD(), sizes), sizes)
    np.testing.assert_array_equal(examples_of(FedSGD(batch_size=8), sizes), [5, 8])


def test_sizes_are_asked_for_and_clients_loaded_only_where_they_must_be():
    places = np.array([4, 2, 0])
    known, unknown = Many(5), Many(5, known=False)
    np.testing.assert_array_equal(sizes_of(known, places), [5, 3, 1])
    assert known.loaded == []
    np.testing.assert_array_equal(sizes_of(unknown, places), [5, 0, 1])  # c2 cannot be loaded: it fails when it works
    assert Crowd(World(), unknown, 0).work(FedAvg(), places).tolist() == [0, 0, 0]
    assert unknown.loaded == [4, 2, 0]  # and not once more where work takes no time


# ------------------------------------------------------------ when a round can open


class Once(Availability):
    """Each client has one spell."""

    def __init__(self, spells):
        self.begin, self.end = (np.array(column, dtype=float) for column in zip(*spells, strict=True))

    def habits(self, seed, clients):
        return self.begin, self.end

    def spells(self, habits, now):
        begin, end = habits
        return np.where(now < end, begin, np.inf), np.where(now < end, end, np.inf)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 15)), min_size=1, max_size=8), st.integers(1, 8),
    st.integers(0, 30),
)  # fmt: skip
def test_a_round_opens_at_the_first_moment_with_enough(devices, least, now):
    """Against a look at every second."""
    assume(least <= len(devices))
    spells = [(begin, begin + length) for begin, length in devices]
    crowd = Crowd(World(available=Once(spells)), Many(len(spells)), 0)
    here = {t: [p for p, (b, e) in enumerate(spells) if b <= t < e] for t in range(now, 60)}
    expected = next((t for t, places in here.items() if len(places) >= least), None)
    if expected is None:
        with pytest.raises(RoundError, match=f"needs {least} clients"):
            crowd.opening(least, float(now))
        return
    moment, places = crowd.opening(least, float(now))
    assert moment == expected
    assert (list(range(len(spells))) if places is None else places.tolist()) == here[expected]


def test_never_enough_is_an_error_that_says_so():
    crowd = Crowd(World(available=Spells(timedelta(hours=1), timedelta(hours=50), 0.0)), Many(100), 0)
    with pytest.raises(RoundError, match=r"needs 90 clients .* of 100 at most"):
        crowd.opening(90, 0.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"speed": 0}, "speed=0"),
        ({"up": "fast"}, "up='fast'"),
        ({"down": LogNormal}, "down=LogNormal is a class"),
        ({"available": 0.5}, "available=0.5"),
        ({"dropout": 1}, "dropout=1 leaves nobody"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"jitter": -1}, "jitter=-1"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    with pytest.raises(PlanError, match=says):
        World(**arguments)
