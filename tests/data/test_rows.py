"""Rows of larger arrays, taken when they are looked at."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from insitu.core.types import Data
from insitu.data.clients import Clients
from insitu.data.rows import Rows

X, Y = np.arange(20.0).reshape(10, 2), np.arange(10)


@pytest.mark.parametrize("rows", [[3, 4, 5], [7], [5, 3, 9], [2, 4, 6]])
def test_they_are_what_indexing_gives(rows):
    data = Rows({"a": X, "b": {"c": Y}}, Y, np.array(rows))
    assert len(data) == len(rows)
    np.testing.assert_array_equal(data.x["a"], X[rows])
    np.testing.assert_array_equal(data.x["b"]["c"], Y[rows])
    np.testing.assert_array_equal(data.y, Y[rows])
    np.testing.assert_array_equal(data.take(slice(0, 1)).x["a"], X[rows][:1])
    np.testing.assert_array_equal(data.take([len(rows) - 1]).rows, rows[-1:])


def test_neighbours_are_a_view_and_others_one_copy():
    assert np.shares_memory(Rows(X, None, np.array([3, 4, 5])).x, X)
    apart = Rows(X, None, np.array([3, 5]))
    assert apart.y is None
    assert apart.x is apart.x
    assert not np.shares_memory(apart.x, X)


def test_what_is_sent_is_the_rows_alone():
    large = np.zeros((100_000, 2))
    sent = pickle.dumps(Rows(large, None, np.array([1, 3])))
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert type(again) is Data
    np.testing.assert_array_equal(again.rows, [1, 3])


def test_all_data_in_one_piece_hold_every_client():
    clients = Clients.from_arrays(X, Y, [np.array([1, 5, 3, 8]), np.array([0, 2])], holdout=0.25)
    whole = clients.whole()
    for client in clients:
        np.testing.assert_array_equal(whole.x[client.data.rows], client.data.x)
        np.testing.assert_array_equal(whole.y[client.data.rows], client.data.y)


def test_lazy_clients_are_not_in_one_piece(tmp_path):
    assert Clients.lazy(range(3), lambda i: (X, Y)).whole() is None
    np.save(tmp_path / "x.npy", X)
    parts = [np.arange(5), np.arange(5, 10)]
    assert Clients.from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), Y, parts).whole() is None
