"""The mean with awkward leaves: arrays without dimensions, float32 totals, many clients, in-place ownership."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from insitu.core.mean import Mean
from insitu.core.types import Context, Update

CONTEXT = Context(1, 10)


def mean_of(values, weights):
    accumulator = Mean().zero()
    for i, (value, weight) in enumerate(zip(values, weights, strict=True)):
        accumulator = Mean().add(accumulator, Update({"a": value}, {"a": weight}), str(i))
    return Mean().finish(accumulator, CONTEXT)


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e4)), min_size=1, max_size=20),
    st.sampled_from(["numpy", "torch"]),
)
def test_it_is_numpys_weighted_average(pairs, kind):
    x, w = np.array([p[0] for p in pairs]), [p[1] for p in pairs]
    make = np.asarray if kind == "numpy" else (lambda v: torch.tensor(v, dtype=torch.float64))
    total = mean_of([{"x": make(v)} for v in x], w)
    assert float(total.value["a"]["x"]) == pytest.approx(np.average(x, weights=w), rel=1e-9, abs=1e-6)
    assert total.weight["a"] == pytest.approx(sum(w))
    assert total.clients == len(pairs)


@pytest.mark.parametrize("make", [np.float32, lambda v: torch.tensor(v, dtype=torch.float32)])
def test_float32_stays_float32(make):
    total = mean_of([{"x": make(1.0)}, {"x": make(2.0)}], [1.0, 3.0])
    assert str(total.value["a"]["x"].dtype).endswith("float32")
    assert float(total.value["a"]["x"]) == 1.75


@pytest.mark.parametrize(
    "values",
    [
        [np.array([3, 7]), np.array([5, 2]), np.array([4, 4])],
        [torch.tensor([3, 7]), torch.tensor([5, 2]), torch.tensor([4, 4])],
        [np.array([3, 7], "uint8"), np.array([5, 2], "uint8"), np.array([4, 4], "uint8")],
    ],
)
def test_integers_are_their_maximum_and_keep_their_type(values):
    total = mean_of([{"n": v} for v in values], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(np.asarray(total.value["a"]["n"]), [5, 7])
    assert total.value["a"]["n"].dtype == values[0].dtype


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_booleans_are_true_where_any_is(make):
    total = mean_of([{"m": make([True, False, False])}, {"m": make([False, False, True])}], [1.0, 1.0])
    assert np.asarray(total.value["a"]["m"]).tolist() == [True, False, True]


def test_one_clients_mean_is_its_value():
    x = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(mean_of([{"x": x}], [7.0]).value["a"]["x"], x, rtol=1e-15)


def test_the_accumulator_stays_one_model():
    """Constant memory: after a thousand updates it holds as many numbers as after one."""
    accumulator = Mean().zero()
    for i in range(1000):
        accumulator = Mean().add(accumulator, Update({"a": {"x": np.ones(5)}}, {"a": 1.0}), str(i))
    assert accumulator["value"]["a"]["x"].shape == (5,)
    assert set(accumulator) == {"value", "weight", "clients"}


def test_a_value_that_is_used_again_does_not_change_the_sum():
    """A lane's memory is written over as soon as its client has been folded."""
    lane = torch.ones(3)
    accumulator = Mean().add(Mean().zero(), Update({"a": {"x": lane, "n": torch.tensor([1])}}, {"a": 1.0}), "0")
    lane.fill_(100)
    assert accumulator["value"]["a"]["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_is_added_piece_by_piece_with_the_same_bits(dtype, order):
    rng = np.random.default_rng(3)
    first, second = (np.asarray(rng.normal(size=(300, 701)), dtype, order=order) for _ in range(2))
    total = Mean().zero()
    for x, weight in ((first, 3.0), (second, 0.7)):
        total = Mean().add(total, Update({"a": {"x": x}}, {"a": weight}), "client")
    wide = np.float64 if dtype == "float64" else np.float32
    expected = first.astype(wide) * 3.0 + second.astype(wide) * 0.7
    assert total["value"]["a"]["x"].dtype == wide
    assert np.array_equal(total["value"]["a"]["x"], expected)
