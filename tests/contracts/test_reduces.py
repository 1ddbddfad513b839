"""What every Reduce promises, tried with each file found in ``insitu.reduce`` and the mean of the core."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from insitu.core import tree, wire
from insitu.core.mean import Mean
from insitu.core.types import Context, Update
from insitu.names import find, members

REDUCES = [Mean, *(find("reduce", name) for name in members("reduce"))]
every = pytest.mark.parametrize("cls", REDUCES, ids=lambda cls: cls.__name__)
NAMES = [f"c{i}" for i in range(7)]
CONTEXT = Context(1, 20, NAMES, 0)


def updates(kind: str = "numpy", dtype: str = "float64") -> list[Update]:
    """Seven clients with weights from 1 to 40, nested parts, an integer leaf and a list of candidates."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(len(NAMES)):
        value = {
            "shared": {"w": rng.normal(size=(3, 2)), "deep": {"b": rng.normal(size=2)}},
            "buffers": {"mean": rng.normal(size=2), "steps": np.asarray(10 * ((i * 3) % 7), dtype=np.int64)},
            "candidates": {"x": rng.normal(size=(2, 2))},
        }
        value = tree.map(lambda x: x.astype(dtype) if x.dtype == np.float64 else x, value)
        if kind == "torch":
            value = tree.map(torch.from_numpy, value)
            value.pop("candidates")  # candidates are lists of NumPy arrays
        weight = float([5, 1, 40, 7, 2, 3, 11][i])
        made.append(Update(value, {"shared": weight, "buffers": weight, "candidates": 1.0}))
    return made


def folded(reduce, which, given=None):
    accumulator = reduce.zero()
    for i in which:
        accumulator = reduce.add(accumulator, (given or updates())[i], NAMES[i])
    return accumulator


def total_of(reduce, accumulator):
    total = reduce.finish(accumulator, CONTEXT)
    return {"value": total.value, "weight": total.weight}, total


def assert_same(a, b) -> None:
    found, expected = dict(tree.leaves(a)), dict(tree.leaves(b))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(np.asarray(found[path]), np.asarray(leaf), rtol=1e-12, atol=1e-13, err_msg=path)


@every
@given(cuts=st.sets(st.integers(1, 6), max_size=6))
def test_merging_blocks_is_adding_one_by_one(cls, cuts):
    reduce = cls()
    ends = [0, *sorted(cuts), 7]
    merged = reduce.zero()
    for start, end in itertools.pairwise(ends):
        merged = reduce.merge(merged, folded(reduce, range(start, end)))
    one, expected = total_of(reduce, merged), total_of(reduce, folded(reduce, range(7)))
    assert_same(one[0], expected[0])
    assert one[1].clients == expected[1].clients == 7
    assert one[1].population == 20


@every
def test_merging_is_associative(cls):
    reduce = cls()

    def part(*which):
        return folded(reduce, which)

    left = reduce.merge(reduce.merge(part(0, 1), part(2, 3)), part(4, 5, 6))
    right = reduce.merge(part(0, 1), reduce.merge(part(2, 3), part(4, 5, 6)))
    assert_same(total_of(reduce, left)[0], total_of(reduce, right)[0])


@every
def test_an_empty_accumulator_changes_nothing(cls):
    reduce = cls()
    expected = total_of(reduce, folded(reduce, (2, 0, 5)))[0]
    assert_same(total_of(reduce, reduce.merge(reduce.zero(), folded(reduce, (2, 0, 5))))[0], expected)
    assert_same(total_of(reduce, reduce.merge(folded(reduce, (2, 0, 5)), reduce.zero()))[0], expected)


@every
def test_nothing_told_is_an_empty_total(cls):
    total = cls().finish(cls().zero(), CONTEXT)
    assert total.value == {}
    assert total.clients == 0


@every
def test_updates_are_not_changed(cls):
    """An accumulator is its own: what clients told may live in a lane or in a cache."""
    reduce, told = cls(), updates()
    before = [wire.encode(update.value) for update in told]
    accumulator = folded(reduce, range(3), told)
    accumulator = reduce.merge(accumulator, folded(reduce, range(3, 7), told))
    reduce.finish(accumulator, CONTEXT)
    assert [wire.encode(update.value) for update in told] == before


@every
def test_integers_become_the_largest(cls):
    """In the mean and among neighbours alike; torch and NumPy alike."""
    for kind in ("numpy", "torch"):
        reduce = cls()
        total = reduce.finish(folded(reduce, range(7), updates(kind)), CONTEXT)
        nodes = [total.value] if "buffers" in total.value else list(total.value.values())
        largest = [int(node["buffers"]["steps"]) for node in nodes]
        dtypes = {str(node["buffers"]["steps"].dtype).removeprefix("torch.") for node in nodes}
        assert dtypes == {"int64"}
        if len(nodes) == 1:
            assert largest == [60]
        else:  # steps are 0, 30, 60, 20, 50, 10, 40 around a ring
            assert largest == [40, 60, 60, 60, 50, 50, 40]


# ------------------------------------------------------------ the mean, by hand


def by_hand(part: str, name: str, which=range(7)) -> np.ndarray:
    given_ = updates()
    weights = np.array([given_[i].weight[part] for i in which])
    values = np.stack([np.asarray(given_[i].value[part][name]) for i in which])
    return np.average(values, axis=0, weights=weights)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_mean_is_the_weighted_mean(kind):
    total = Mean().finish(folded(Mean(), range(7), updates(kind)), CONTEXT)
    np.testing.assert_allclose(np.asarray(total.value["shared"]["w"]), by_hand("shared", "w"), rtol=1e-13)
    np.testing.assert_allclose(np.asarray(total.value["buffers"]["mean"]), by_hand("buffers", "mean"), rtol=1e-13)
    assert total.weight["shared"] == 69


def test_parts_have_weights_of_their_own():
    values = [
        {"a": {"x": np.array([1.0])}, "b": {"x": np.array([1.0])}},
        {"a": {"x": np.array([4.0])}, "b": {"x": np.array([4.0])}},
    ]
    accumulator = Mean().zero()
    for i, weight in enumerate(({"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 1.0})):
        accumulator = Mean().add(accumulator, Update(values[i], weight), str(i))
    total = Mean().finish(accumulator, CONTEXT)
    assert total.value["a"]["x"].item() == pytest.approx(1.75)
    assert total.value["b"]["x"].item() == pytest.approx(2.5)


def test_a_part_that_some_do_not_tell_is_the_mean_of_those_who_do():
    accumulator = Mean().zero()
    accumulator = Mean().add(accumulator, Update({"a": {"x": np.array([2.0])}}, {"a": 1.0}), "0")
    accumulator = Mean().add(
        accumulator, Update({"a": {"x": np.array([4.0])}, "b": {"x": np.array([7.0])}}, {"a": 1.0, "b": 3.0}), "1"
    )
    total = Mean().finish(accumulator, CONTEXT)
    assert total.value["a"]["x"].item() == 3.0
    assert total.value["b"]["x"].item() == 7.0


def test_a_part_without_weight_is_left_out():
    accumulator = Mean().add(Mean().zero(), Update({"a": {"x": np.array([2.0])}}, {"a": 0.0}), "0")
    assert Mean().finish(accumulator, CONTEXT).value == {}


# float16 holds 2048 + 1 as 2048 and nothing above 65504: sums that stay in it are wrong in plain sight.
HALVES = [
    pytest.param("numpy", "float16", id="numpy-float16"),
    pytest.param("torch", "float16", id="torch-float16"),
    pytest.param("torch", "bfloat16", id="torch-bfloat16"),
]


def halves(kind: str, dtype: str, values: list[float]):
    if kind == "numpy":
        return [np.array([v], dtype=dtype) for v in values]
    return [torch.tensor([v], dtype=getattr(torch, dtype)) for v in values]


@pytest.mark.parametrize(("kind", "dtype"), HALVES)
def test_sums_of_half_precision_are_kept_in_float32(kind, dtype):
    accumulator = Mean().zero()
    for i, x in enumerate(halves(kind, dtype, [100.0, 100.0, 100.0, 100.0])):
        accumulator = Mean().add(accumulator, Update({"a": {"x": x}}, {"a": 5000.0}), str(i))
    total = Mean().finish(accumulator, CONTEXT)
    assert float(np.asarray(total.value["a"]["x"])[0]) == pytest.approx(100.0, rel=1e-6)
    accumulator = Mean().zero()
    for i, x in enumerate(halves(kind, dtype, [1.0] * 3000)):
        accumulator = Mean().add(accumulator, Update({"a": {"x": x}}, {"a": 1.0}), str(i))
    assert float(np.asarray(accumulator["value"]["a"]["x"])[0]) == 3000.0


@pytest.mark.parametrize(("kind", "dtype"), HALVES)
def test_weights_are_not_rounded_to_half_precision(kind, dtype):
    """A weight of 2049 is 2048 in float16: the quotient shows it."""
    accumulator = Mean().zero()
    for i, x in enumerate(halves(kind, dtype, [0.0, 1.0])):
        accumulator = Mean().add(accumulator, Update({"a": {"x": x}}, {"a": [1.0, 2049.0][i]}), str(i))
    total = Mean().finish(accumulator, CONTEXT)
    assert float(np.asarray(total.value["a"]["x"])[0]) == pytest.approx(2049 / 2050, rel=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), HALVES[:2])
def test_neighbours_mix_half_precision_in_float32(kind, dtype):
    """The mean of five is the exact mean, rounded once; not of products that were rounded each."""
    from insitu.reduce.neighbours import Neighbours

    rng = np.random.default_rng(0)
    reduce = Neighbours("complete")
    for _ in range(100):
        given_ = halves(kind, dtype, rng.uniform(1, 2, size=5).tolist())
        accumulator = reduce.zero()
        for i, x in enumerate(given_):
            accumulator = reduce.add(accumulator, Update({"a": {"x": x}}, {"a": 1.0}), NAMES[i])
        total = reduce.finish(accumulator, Context(1, 5, NAMES[:5], 0))
        expected = float(np.float16(np.mean([float(x[0]) for x in given_])))
        assert [float(np.asarray(total.value[name]["a"]["x"])[0]) for name in NAMES[:5]] == [expected] * 5


def test_values_of_another_shape_are_refused_and_never_broadcast():
    """(2,) against (3, 2) would broadcast to a wrong sum without a word."""
    for odd in (np.ones(2), np.ones((1, 2)), np.ones((4, 2))):
        accumulator = Mean().add(Mean().zero(), Update({"a": {"x": np.ones((3, 2))}}, {"a": 1.0}), "0")
        with pytest.raises(ValueError, match=r"shape|broadcast"):
            Mean().add(accumulator, Update({"a": {"x": odd}}, {"a": 1.0}), "1")


def test_values_with_other_names_are_refused():
    accumulator = Mean().add(Mean().zero(), Update({"a": {"x": np.ones(2), "y": np.ones(2)}}, {"a": 1.0}), "0")
    for odd in ({"x": np.ones(2)}, {"x": np.ones(2), "z": np.ones(2)}):
        with pytest.raises((ValueError, KeyError)):
            Mean().add(accumulator, Update({"a": odd}, {"a": 1.0}), "1")


def test_blocks_of_another_shape_are_refused_and_never_broadcast():
    """Blocks are folded elsewhere, each alike in itself: merging is where they meet."""

    def block(x):
        return Mean().add(Mean().zero(), Update({"a": {"x": x}}, {"a": 1.0}), "0")

    for odd in (np.ones(2), np.ones((1, 2)), np.ones((4, 2))):
        with pytest.raises(ValueError, match="shape"):
            Mean().merge(block(np.ones((3, 2))), block(odd))
