"""Arithmetic on trees against the same on their flat vectors; NumPy and torch alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from insitu.core import arrays, tree

leaf = st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(["float32", "float64"])).map(
    lambda t: np.random.default_rng(sum(t[0])).normal(size=t[0]).astype(t[1])
)
trees = st.recursive(
    st.dictionaries(st.text(max_size=3), leaf, max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=3), leaf | inner, max_size=3),
    max_leaves=6,
)


def other(a):
    return tree.map(lambda x: np.asarray(np.cos(x + 1)).astype(x.dtype), a)


def vector(a) -> np.ndarray:
    """Written out: the leaves in the order of a walk."""
    if isinstance(a, dict):
        return np.concatenate([np.zeros(0), *(vector(v) for v in a.values())])
    return np.asarray(a, dtype=np.float64).reshape(-1)


@given(trees)
def test_arithmetic_is_that_of_vectors(a):
    b = other(a)
    va, vb = vector(a), vector(b)
    for found, expected in (
        (tree.add(a, b), va + vb),
        (tree.subtract(a, b), va - vb),
        (tree.scale(a, 2.5), 2.5 * va),
        (tree.zeros_like(a), 0 * va),
        (tree.copy(a), va),
    ):
        np.testing.assert_allclose(vector(found), expected, rtol=1e-6, atol=1e-6)
    assert tree.norm(a) == pytest.approx(np.linalg.norm(va), rel=1e-5)
    np.testing.assert_allclose(tree.flatten(a), va, rtol=1e-6)


@given(trees)
def test_flatten_and_unflatten_are_inverse(a):
    back = tree.unflatten(tree.flatten(a), a)
    assert list(tree.leaves(back)) != [] or not tree.values(a)
    for (path, x), (found, y) in zip(tree.leaves(a), tree.leaves(back), strict=True):
        assert path == found
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@given(trees)
def test_torch_and_numpy_agree(a):
    t = tree.map(torch.from_numpy, a)
    np.testing.assert_allclose(
        tree.flatten(tree.add(t, tree.map(torch.from_numpy, other(a)))), tree.flatten(tree.add(a, other(a))), rtol=1e-6
    )
    assert tree.norm(t) == pytest.approx(tree.norm(a), rel=1e-5)
    assert tree.nbytes(t) == tree.nbytes(a) == sum(x.nbytes for x in tree.values(a))
    assert [path for path, _ in tree.leaves(t)] == [path for path, _ in tree.leaves(a)]


@given(trees)
def test_nothing_changes_its_arguments(a):
    before = vector(a).copy()
    c = tree.copy(a)
    for x in tree.values(c):
        x[...] = 7
    tree.add(a, a), tree.scale(a, 3), tree.unflatten(tree.flatten(a) * 2, a)
    np.testing.assert_array_equal(vector(a), before)


def test_unflatten_does_not_share_memory_with_its_vector():
    v = np.arange(4.0)
    a = tree.unflatten(v, {"x": np.zeros((2, 2))})
    v[:] = -1
    np.testing.assert_array_equal(a["x"], [[0, 1], [2, 3]])


def test_a_vector_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="5 elements"):
        tree.unflatten(np.zeros(5), {"x": np.zeros(4)})


@pytest.mark.parametrize("b", [{"x": 1}, {"x": 1, "z": 2}, {"x": 1, "y": 2, "z": 3}, 5])
def test_trees_that_differ_are_refused(b):
    with pytest.raises(ValueError, match="trees differ"):
        tree.add({"x": 1, "y": 2}, b)


def test_a_tree_against_a_leaf_is_refused_both_ways():
    with pytest.raises((ValueError, TypeError)):
        tree.add({"x": np.ones(2)}, {"x": {"y": np.ones(2)}})
    with pytest.raises((ValueError, TypeError)):
        tree.add({"x": {"y": np.ones(2)}}, {"x": np.ones(2)})


def test_the_order_of_the_first_decides():
    assert list(tree.add({"b": 1, "a": 2}, {"a": 10, "b": 20})) == ["b", "a"]
    assert tree.add({"b": 1, "a": 2}, {"a": 10, "b": 20}) == {"b": 21, "a": 12}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_leaf_is_named(bad):
    a = {"fine": np.ones(3), "deep": {"w": np.array([1.0, bad]), "v": np.array([bad])}}
    assert tree.not_finite(a) == "deep/w"
    assert tree.not_finite(tree.map(torch.from_numpy, a)) == "deep/w"
    assert tree.not_finite({"fine": np.ones(3), "whole": np.arange(3)}) is None


def test_bfloat16_reads_as_float32():
    found = arrays.asnumpy(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -2.0])


@pytest.mark.parametrize("reference", [np.zeros(1, "float32"), torch.zeros(1, dtype=torch.float32)])
def test_like_cast_and_scalar_follow_the_reference(reference):
    x = arrays.like(np.arange(3, dtype=np.int64), reference)
    assert arrays.is_torch(x) == arrays.is_torch(reference)
    assert str(x.dtype).endswith("int64")
    assert arrays.cast(x, reference).dtype == reference.dtype
    one = arrays.scalar(1.5, reference)
    assert one.dtype == reference.dtype
    assert tuple(one.shape) == ()


def test_widen_touches_half_precision_only():
    assert arrays.widen(np.zeros(1, "float16")).dtype == np.float32
    assert arrays.widen(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    for kept in (np.zeros(1, "float64"), np.zeros(1, "int8"), torch.zeros(1, dtype=torch.int16), np.zeros(1, bool)):
        assert arrays.widen(kept).dtype == kept.dtype


def test_an_empty_tree_has_norm_zero():
    assert tree.norm({}) == 0.0
    assert tree.flatten({"a": {}}).shape == (0,)
    assert tree.first_leaf({"a": {}, "b": {"c": 5}}) == 5
