"""Speeds and bandwidths over clients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from insitu.core.errors import PlanError
from insitu.rounds.world import LogNormal, Measured
from insitu.rounds.world.distribution import values

EVERYONE = np.arange(40_000)


def csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("median", "sigma"), [(2.0, 0.5), (1e6, 1.2)])
def test_log_normal_is_log_normal(median, sigma):
    found = LogNormal(median, sigma).of(3, "speed", EVERYONE)
    assert stats.kstest(found, stats.lognorm(s=sigma, scale=median).cdf).pvalue > 1e-3


def test_the_figures_of_the_docstring():
    for sigma, beyond in ((0.5, 2.3), (1.0, 5.2)):
        assert stats.lognorm(s=sigma).sf(beyond) == pytest.approx(1 / 20, abs=3e-3)


def test_properties_of_one_device_are_drawn_apart():
    speed, up = (np.log(LogNormal(1.0, 1.0).of(3, name, EVERYONE)) for name in ("speed", "up"))
    assert abs(np.corrcoef(speed, up)[0, 1]) < 0.02


def test_what_is_not_given_takes_no_time_and_a_number_is_everyones():
    np.testing.assert_array_equal(values(None, 0, "up", EVERYONE[:3]), [np.inf] * 3)
    np.testing.assert_array_equal(values(5, 0, "up", EVERYONE[:3]), [5.0] * 3)


def test_a_client_gets_one_row_of_the_file(tmp_path):
    """Speed and bandwidth come from the same row; rows are equally likely; the order of columns does not matter."""
    rows = [(i + 1, 10 * (i + 1)) for i in range(7)]
    path = csv(tmp_path / "phones.csv", "kbps, speed\n" + "".join(f"{kbps},{speed}\n" for speed, kbps in rows))
    speed = Measured(path, "speed").of(3, "speed", EVERYONE)
    up = Measured(path, "kbps", scale=125).of(3, "up", EVERYONE)
    np.testing.assert_array_equal(up, speed * 10 * 125)
    counts = np.unique(speed, return_counts=True)[1]
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_content_is_what_counts_for_the_record(tmp_path):
    """A file may be moved, and a run goes on; changed, it may not."""
    a, b, c = (
        Measured(csv(tmp_path / name, text), "speed").config()
        for name, text in (("a.csv", "speed\n1\n"), ("b.csv", "speed\n1\n"), ("c.csv", "speed\n2\n"))
    )
    assert a == b
    assert a != c
    assert set(a) == {"name", "column", "scale", "sha256"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("speed\n1\n0\n", "line 3: speed is 0: expected a number > 0"),
        ("speed\n1\n\n\nfast\n", "line 5: speed is 'fast': expected a number"),
        ("speed\nnan\n", "line 2: speed is 'nan'"),
        ("spede\n1\n", "no column 'speed': did you mean 'spede'?"),
        ("speed\n", "no rows"),
        ("", "no column 'speed'"),
        ("speed,up\n1\n", "line 2 has 1 values, and the first line 2 names"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(tmp_path, text, says):
    path = csv(tmp_path / "phones.csv", text)
    with pytest.raises(PlanError, match=r"phones\.csv") as refused:
        Measured(path, "speed")
    assert says in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"none\.csv cannot be read: No such file"):
        Measured(tmp_path / "none.csv", "speed")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LogNormal(0), "median=0"),
        (lambda: LogNormal(1, -1), "sigma=-1"),
        (lambda: Measured("x.csv", "speed", 0), "scale=0"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(PlanError, match=says):
        make()
