"""Preparing columns: test rows teach nothing, and what is missing is filled in as documented."""

import numpy as np
import pytest

from insitu.data.encode import impute, middle, one_hot, standardise

NAN = float("nan")


def test_one_hot():
    columns, names = one_hot(["b", "a", "b"], name="kind")
    assert names == ["kind=a", "kind=b"]
    assert columns.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert one_hot([2.0, NAN], name="n")[1] == ["n=2"]
    assert one_hot(["c"], ["a", "b"])[0].tolist() == [[0, 0]]


def test_standardise_by_other_rows():
    x = np.array([[1.0, 5.0], [3.0, 5.0], [NAN, 5.0]])
    assert standardise(x)[:2].tolist() == [[-1, 0], [1, 0]]
    assert np.isnan(standardise(x)[2, 0])
    assert standardise(np.array([[4.0, 6.0]]), x).tolist() == [[2, 1]]


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9, -1e-9])
def test_a_constant_column_becomes_zero(constant):
    assert np.abs(standardise(np.full((1000, 1), constant))).max() < 1e-6


def test_middle():
    assert middle(np.array([1.0, 2.0, 9.0, NAN]), codes=False) == 2
    assert middle(np.array([7.0, 3.0, 7.0, NAN]), codes=True) == 7
    assert np.isnan(middle(np.array([NAN]), codes=False))


def test_impute():
    values, groups = np.array([1.0, NAN, 5.0, NAN, NAN]), np.array(["a", "a", "b", "b", "c"])
    assert impute(values).tolist() == [1, 3, 5, 3, 3]
    assert impute(values, groups).tolist() == [1, 1, 5, 5, 3]
    assert np.isnan(values[1]), "the argument is left as it was"
