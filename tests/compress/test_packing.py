"""Each packing against the same by naive means: torch's rounding, a loop over levels, a sort, places one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.compress.half import Half
from insitu.compress.quantize import Quantize
from insitu.compress.randomk import RandomK
from insitu.compress.signs import Signs
from insitu.compress.topk import TopK, largest, pack_places, places_bytes, unpack_places
from insitu.core import seeds, tree
from insitu.core.errors import UpdateError
from insitu.core.types import Context, Update

AT = Context(3, 0, seed=5, client="a")


def packed(stage, x):
    return stage.encode(Update({"shared": {"x": x}}, {"shared": 1.0}), None, AT)[0]


def read(stage, x):
    return stage.decode_each(packed(stage, x), AT).value["shared"]["x"]


# ------------------------------------------------------------ halves

NUMBERS = np.concatenate([
    np.random.default_rng(0).normal(size=2000) * 10.0 ** np.random.default_rng(1).integers(-9, 4, 2000),
    [0.0, -0.0, 1.0, -1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65504.0, 6e-8, 1e-40],
]).astype(np.float32)  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_round_as_torch_does(dtype):
    expected = torch.from_numpy(NUMBERS).to(getattr(torch, dtype)).float().numpy()
    found = read(Half(dtype), NUMBERS)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_a_number_too_large_for_a_half_is_refused_with_the_cure():
    x = np.full(100, 1e5, np.float32)
    with pytest.raises(UpdateError, match=r"100000.*float16.*bfloat16"):
        packed(Half("float16"), x)
    np.testing.assert_allclose(read(Half(), x), x, rtol=2**-8)
    with pytest.raises(UpdateError, match="leave Half out"):
        packed(Half(), x.astype(np.float64) * 1e50)


# ------------------------------------------------------------ levels


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (4, 7)])
@pytest.mark.parametrize("n", [64, 65, 300])
def test_levels_by_a_loop(bits, most, n):
    x, group = np.random.default_rng(n).normal(size=n), 32
    u = seeds.generator(5, 3, "a", "quantize/shared/x").random(n)
    expected = np.zeros(n)
    for i in range(n):
        start = i // group * group
        step = max(abs(x[j]) for j in range(start, min(start + group, n))) / most
        expected[i] = step * max(-most, min(most, np.floor(x[i] / step + u[i])))
    np.testing.assert_allclose(read(Quantize(bits, group), x), expected, rtol=1e-14)
    assert len(packed(Quantize(bits, group), x).value["shared"]["x"]["levels"]) == (n if bits == 8 else (n + 1) // 2)


@pytest.mark.parametrize("bits", [8, 4])
def test_no_number_is_off_by_more_than_a_step(bits):
    x = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    steps = np.abs(x).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    assert (np.abs(read(Quantize(bits, 32), x) - x) <= steps * (1 + 1e-6)).all()


def test_zeros_stay_zero():
    for stage in (Quantize(), Quantize(4), TopK(0.1), Signs(), Half(), RandomK(0.1)):
        assert not read(stage, np.zeros(300)).any()


# ------------------------------------------------------------ the largest, and where they are


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.data())
def test_the_largest_are_those_of_a_stable_sort(values, data):
    x = np.array(values, float)
    k = data.draw(st.integers(1, len(x)))
    np.testing.assert_array_equal(largest(x, k), np.sort(np.argsort(-np.abs(x), kind="stable")[:k]))


@settings(deadline=None)
@given(st.integers(1, 70_000), st.data())
def test_places_come_back_in_the_bytes_that_are_said(n, data):
    k = max(1, min(n, round(n * data.draw(st.sampled_from([0.0, 0.0001, 0.001, 0.01, 0.05, 0.13, 0.5, 1.0])))))
    start = data.draw(st.integers(0, n - k))  # all in a row: the fullest block that there can be
    scattered = np.sort(np.random.default_rng(n).permutation(n)[:k])
    for places in (scattered, np.arange(start, start + k)):
        told = pack_places(places, n)
        np.testing.assert_array_equal(unpack_places(told, n, k), places)
        assert tree.nbytes(told) == places_bytes(n, k) <= min(4 * (k + 1), -(-n // 8))


def test_a_place_costs_less_than_its_number():
    assert places_bytes(10**6, 10**4) == 10**4 + 3922  # 1 %: one byte each, and a count for each 255
    assert places_bytes(10**6, 10**3) == 2 * (10**3 + 16)  # 0.1 %: two bytes each, and a count for each 65535
    assert places_bytes(10**6, 3 * 10**5) == 125_000  # 30 %: a bit for each element


def test_places_that_are_not_places_are_refused():
    for bad in (
        {"bitmap": np.array([255], np.uint8)},
        {"counts": np.array([3], np.uint8), "offsets": np.array([1, 2], np.uint8)},
        {"counts": np.array([2], np.uint8)},
    ):
        with pytest.raises((ValueError, KeyError)):
            unpack_places(bad, 8, 2)


# ------------------------------------------------------------ drawn places, signs


def test_random_places_are_drawn_evenly_and_again_on_the_other_side():
    x = np.arange(1.0, 101.0)
    counts = np.zeros(100)
    for round in range(2000):
        at, stage = Context(round, 0, seed=5, client="a"), RandomK(0.1, smallest=0)
        told, _ = stage.encode(Update({"shared": {"x": x}}, {"shared": 1.0}), None, at)
        assert set(told.value["shared"]["x"]) == {"form", "values"}
        found = stage.decode_each(told, at).value["shared"]["x"]
        np.testing.assert_array_equal(found[found != 0], x[found != 0])
        assert (found != 0).sum() == 10
        counts += found != 0
    assert np.abs(counts - 200).max() < 5 * np.sqrt(2000 * 0.1 * 0.9)


def test_unbiased_random_places_are_told_larger():
    found = read(RandomK(0.1, unbiased=True, feedback=False), np.full(100, 2.0))
    assert sorted(found) == [0.0] * 90 + [20.0] * 10


def test_signs_are_the_mean_size_in_each_direction():
    x = np.random.default_rng(0).normal(size=(9, 11))
    np.testing.assert_allclose(read(Signs(), x), np.where(x < 0, -1, 1) * np.abs(x).mean(), rtol=1e-14)


# ------------------------------------------------------------ one after another


def test_two_packings_are_undone_one_after_the_other():
    """The largest hundredth in eight bits: values as they were, to a step; places exactly."""
    x = np.random.default_rng(0).normal(size=30_000).astype(np.float32)
    first, second = TopK(0.01), Quantize(8)
    one = packed(first, x)
    two, kept = second.encode(one, None, AT)
    assert kept is None
    assert tree.nbytes(two.value) == 300 + 4 * 2 + places_bytes(30_000, 300)
    back = first.decode_each(second.decode_each(two, AT), AT).value["shared"]["x"]
    expected = read(first, x)
    np.testing.assert_array_equal(back != 0, expected != 0)
    assert np.abs(back - expected).max() <= np.abs(x).max() / 127 * (1 + 1e-6)
