"""When clients can be reached: against the definition, one client and one interval at a time."""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from insitu.core.errors import PlanError
from insitu.rounds.world import Always, Daily, Spells, Trace

HOUR = 3600.0


class Many:
    """So many clients without data."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def id_at(self, place):
        return f"c{place}"


def spell_of(intervals, now):
    """By definition: the one that holds ``now``, else the next, out of a list in order."""
    return next(((begin, end) for begin, end in intervals if now < end), (math.inf, math.inf))


# ------------------------------------------------------------ cycles


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(0, 200),
)
def test_cycles_by_their_definition(devices, now):
    """Whole numbers of seconds, so that the definition and the arithmetic agree to the last bit."""
    start, on, off = (np.array(column, dtype=float) for column in zip(*devices, strict=True))
    begin, end = Spells(timedelta(1), timedelta(1)).spells((start, on, on + off), float(now))
    for i, (s, length, rest) in enumerate(devices):
        intervals = [(s + k * (length + rest), s + k * (length + rest) + length) for k in range(-300, 300)]
        assert (begin[i], end[i]) == spell_of(intervals, now)


def test_spells_cover_their_share_and_last_as_long_as_they_say():
    model = Spells(on=timedelta(hours=1), off=timedelta(hours=3), sigma=0.7)
    _, on, period = habits = model.habits(4, Many(40_000))
    for length, median in ((on, HOUR), (period - on, 3 * HOUR)):
        assert stats.kstest(length, stats.lognorm(s=0.7, scale=median).cdf).pvalue > 1e-3
    for now in (0.0, 12345.0, 1e6):
        here = model.spells(habits, now)[0] <= now
        assert here.mean() == pytest.approx((on / period).mean(), abs=0.01)


def test_daily_follows_the_hour():
    """The share at an hour is that of clients who began in the eight hours before: a difference of normal shares."""
    model = Daily(start=timedelta(hours=22), length=timedelta(hours=8), spread=timedelta(hours=2))
    habits = model.habits(4, Many(40_000))
    began = stats.norm(loc=22, scale=2)
    for hour in (0, 2, 7, 14, 22, 24 * 5 + 23):
        here = model.spells(habits, hour * HOUR)[0] <= hour * HOUR
        at = hour % 24
        expected = sum(began.cdf(at + 24 * k) - began.cdf(at + 24 * k - 8) for k in range(-2, 3))
        assert here.mean() == pytest.approx(expected, abs=0.01)


def test_all_day_and_no_pause_never_end():
    whole = Daily(length=timedelta(days=1))
    assert np.isinf(whole.spells(whole.habits(0, Many(9)), 5.0)[1]).all()
    on = Spells(on=timedelta(hours=1), off=timedelta(0))
    assert np.isinf(on.spells(on.habits(0, Many(9)), 5.0)[1]).all()
    begin, end = Always().spells(Always().habits(0, Many(3)), 7.0)
    assert (begin <= 7).all()
    assert np.isinf(end).all()


# ------------------------------------------------------------ traces


def written(path, rows, head="device,start,end"):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]), encoding="utf-8")
    return path


@st.composite
def recordings(draw):
    """A period, and intervals of up to three devices within it, in any order, overlapping or not."""
    period = draw(st.integers(10, 40))
    rows = []
    for device in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 5))):
            begin = draw(st.integers(0, period - 1))
            rows.append((f"phone {device}", begin, draw(st.integers(begin + 1, period))))
    return period, draw(st.permutations(rows))


@given(recordings(), st.integers(0, 150))
def test_traces_by_their_definition(tmp_path_factory, recording, now):
    """Second by second: a device is on in those that some interval covers, over and over again."""
    period, rows = recording
    trace = Trace(written(tmp_path_factory.getbasetemp() / "t.csv", rows), timedelta(seconds=period))
    names = list(dict.fromkeys(name for name, _, _ in rows))
    begin, end = trace.spells((np.arange(len(names)),), float(now))
    for device, name in enumerate(names):
        on = [any(n == name and b <= s % period < e for n, b, e in rows) for s in range(now + 3 * period)]
        if all(on):
            assert begin[device] <= now
            assert math.isinf(end[device])
            continue
        first = next(s for s in range(now, len(on)) if on[s])
        last = next(s for s in range(first, len(on)) if not on[s])
        assert (max(begin[device], now), end[device]) == (first, last)


def test_clients_have_devices_by_seed_or_by_id(tmp_path):
    rows = [("c3", 0, 10), ("c1", 10, 20), ("c9", 20, 30)]
    path = written(tmp_path / "t.csv", rows)
    trace = Trace(path)
    (device,) = trace.habits(1, Many(30_000))
    assert stats.chisquare(np.bincount(device)).pvalue > 1e-3
    begin, _ = trace.spells((device,), 12.0)  # more clients than devices
    few, _ = trace.spells((device[:2],), 12.0)
    np.testing.assert_array_equal(begin[:2], few)
    np.testing.assert_array_equal(begin, np.array([30.0, 10.0, 20.0])[device])
    by_id = Trace(path, by="id")
    begin, end = by_id.spells(by_id.habits(1, Many(5)), 12.0)
    np.testing.assert_array_equal(begin, [np.inf, 10, np.inf, 30, np.inf])
    np.testing.assert_array_equal(end, [np.inf, 20, np.inf, 40, np.inf])


def test_a_client_has_the_row_of_its_speed(tmp_path):
    """One file of devices beside one of intervals, in the same order: a fast client is one that is there late."""
    from insitu.rounds.world import Measured

    trace = Trace(written(tmp_path / "t.csv", [("a", 0, 10), ("b", 10, 20), ("c", 20, 30)]))
    speed = Measured(written(tmp_path / "d.csv", [("a", 1), ("b", 2), ("c", 3)], "device,speed"), "speed")
    (device,) = trace.habits(5, Many(100))
    np.testing.assert_array_equal(speed.of(5, "speed", np.arange(100)), device + 1)


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ([("a", 5, 5)], {}, "line 2: from 5 to 5: expected 0 <= start < end"),
        ([("a", 0, 5), ("a", -1, 5)], {}, "line 3: from -1 to 5"),
        ([("a", "noon", 5)], {}, "start is 'noon'"),
        ([("a", 0, 50)], {"period": timedelta(seconds=40)}, "ends after 0:00:50"),
        ([("a", 0, 50)], {"period": 60}, "to be a timedelta"),
        ([("a", 0, 50)], {"by": "name"}, "by='name'"),
    ],
)
def test_a_wrong_trace_is_refused(tmp_path, rows, more, says):
    with pytest.raises(PlanError) as refused:
        Trace(written(tmp_path / "t.csv", rows), **more)
    assert says in str(refused.value)


def test_a_trace_of_others_is_refused(tmp_path):
    trace = Trace(written(tmp_path / "t.csv", [("berlin", 0, 5)]), by="id")
    with pytest.raises(PlanError, match=r"no client has the id of a device in .*'berlin'"):
        trace.habits(0, Many(3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Daily(length=timedelta(0)), "length"),
        (lambda: Daily(length=timedelta(hours=25)), "a day at most"),
        (lambda: Daily(start=8), "start=8 to be a timedelta"),
        (lambda: Spells(on=timedelta(0), off=timedelta(1)), "on"),
        (lambda: Spells(on=timedelta(1), off=timedelta(1), sigma=-1), "sigma"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(PlanError, match=says):
        make()


def test_config_is_in_seconds():
    assert Daily().config() == {"name": "daily", "start": 79200.0, "length": 28800.0, "spread": 7200.0}
    assert Always().config() == {"name": "always"}
