"""Array functions of both kinds against what NumPy says of each element."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insitu.core import arrays, tree

LARGEST = {torch.float16: 65504.0, torch.bfloat16: 3.38e38, torch.float32: 3.4e38, torch.float64: 1.7e308}
SHAPES = [(0,), (1,), (), (10,), (arrays.SHORT,), (arrays.SHORT + 1,), (20, 30)]


def finite_by_hand(x):
    return bool(np.isfinite(x.detach().double().numpy()).all())


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_not_finite_is_found_wherever_it_is(dtype, shape):
    x = torch.ones(shape, dtype=dtype)
    assert arrays.all_finite(x)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in {0, x.numel() // 2, x.numel() - 1} - {-1} if x.numel() else ():
            wrong = x.clone()
            wrong.view(-1)[place] = bad
            assert not arrays.all_finite(wrong)
            assert not arrays.all_finite(wrong.requires_grad_())
            if dtype != torch.bfloat16:
                assert not arrays.all_finite(wrong.detach().numpy())


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_whose_sum_overflows_are_finite(dtype, shape):
    x = torch.full(shape, LARGEST[dtype], dtype=dtype)
    assert finite_by_hand(x)
    assert arrays.all_finite(x)
    assert arrays.all_finite(-x)


def test_infinities_that_would_cancel_are_found():
    for n in (2, 200):
        x = torch.zeros(n)
        x[0], x[1] = float("inf"), -float("inf")
        assert not arrays.all_finite(x)


def test_whole_numbers_and_truth_values_are_finite():
    for x in (torch.arange(3), torch.tensor([True]), np.arange(100), np.array(True)):
        assert arrays.all_finite(x)


def test_the_first_leaf_that_is_not_finite_is_named():
    bad = torch.full((100,), float("nan"))
    assert tree.not_finite({"a": torch.ones(3), "b": {"c": bad, "d": bad}}) == "b/c"
    assert tree.not_finite({"a": torch.full((100,), 3e38), "b": {}}) is None


class Odd(torch.Tensor):
    """A tensor of a class of its own."""


@pytest.mark.parametrize(
    "x", [torch.ones(3), torch.nn.Parameter(torch.ones(3)), torch.ones(3).as_subclass(Odd)], ids=["t", "p", "odd"]
)
def test_tensors_of_every_class_are_tensors(x):
    assert arrays.is_torch(x)
    assert arrays.is_array(x)
    assert arrays.nbytes(x) == 12
    assert not tree.is_branch(x)


@pytest.mark.parametrize("x", [np.ones(3), np.float32(1), 1.0, None, "a", {"a": 1}])
def test_what_is_no_tensor_is_none(x):
    assert not arrays.is_torch(x)
    assert arrays.is_array(x) == isinstance(x, (np.ndarray, np.generic))
