"""Each check lets the good pass unchanged and names argument and value of the bad."""

from __future__ import annotations

import numpy as np
import pytest

from insitu.core import checks
from insitu.core.errors import PlanError

NOT_NUMBERS = [float("nan"), float("inf"), "1", None, True, [1]]
GOOD = [
    (checks.number, [-1.5, 0, 3, np.float64(2.5), np.float32(0.5), np.int64(3)]),
    (checks.positive, [1e-300, 1, 2.5]),
    (checks.not_negative, [0, 0.0, 3]),
    (checks.probability, [0, 1, 0.5, 1.0]),
    (checks.count, [1, 10**9, np.int64(3)]),
]
BAD = [
    (checks.number, NOT_NUMBERS),
    (checks.positive, [0, -1, -0.0, *NOT_NUMBERS]),
    (checks.not_negative, [-1e-300, -1, *NOT_NUMBERS]),
    (checks.probability, [-0.01, 1.01, *NOT_NUMBERS]),
    (checks.count, [0, -1, 1.0, 2.5, *NOT_NUMBERS]),
]


@pytest.mark.parametrize(("check", "value"), [(c, v) for c, values in GOOD for v in values])
def test_good_values_pass_unchanged(check, value):
    assert check(name=value) == value


@pytest.mark.parametrize(("check", "value"), [(c, v) for c, values in BAD for v in values])
def test_bad_values_are_refused_by_name_and_value(check, value):
    with pytest.raises(PlanError) as refused:
        check(some_name=value)
    assert f"some_name={value!r}" in str(refused.value)
    assert "Expected" in str(refused.value)


def test_one_of_lists_what_there_is():
    assert checks.one_of(("a", "b"), name="b") == "b"
    with pytest.raises(PlanError, match="name='c' to be one of 'a', 'b'"):
        checks.one_of(("a", "b"), name="c")


def test_errors_are_those_of_python_too():
    """So that a caller who knows nothing of insitu can catch them."""
    with pytest.raises(ValueError, match="lr=-1 > 0"):
        checks.positive(lr=-1)
