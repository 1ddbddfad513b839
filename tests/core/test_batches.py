"""Which examples make up each step: every example once an epoch, on every engine the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insitu.core.batches import batches, epoch_steps, onward

AT = {"seed": 3, "round": 2, "client": "a"}
sizes = st.integers(1, 60)
a_batch = st.integers(1, 20)


def cut(n, size, epochs=None, steps=None, **more):
    made = batches(n, size, epochs, steps, **{**AT, **more})
    return [made[s] for s in range(len(made))], made


@given(sizes, a_batch, st.integers(1, 4))
def test_every_example_comes_once_an_epoch_and_the_partial_batch_is_kept(n, size, epochs):
    steps, made = cut(n, size, epochs)
    per_epoch = -(-n // size)
    assert len(steps) == per_epoch * epochs
    for e in range(epochs):
        epoch = steps[e * per_epoch : (e + 1) * per_epoch]
        assert sorted(np.concatenate(epoch)) == list(range(n))
        assert [len(s) for s in epoch] == [size] * (n // size) + ([n % size] if n % size else [])
    assert made.largest() == min(n, size)


@given(sizes, st.integers(2, 20), st.integers(1, 3))
def test_with_pairs_a_leftover_of_one_joins_the_batch_before(n, size, epochs):
    steps, made = cut(n, size, epochs, pairs=True)
    lengths = [len(s) for s in steps]
    if n > 1:
        assert min(lengths) >= 2
    assert sum(lengths) == n * epochs
    assert max(lengths) <= size + 1
    per_epoch = len(steps) // epochs
    for e in range(epochs):
        assert sorted(np.concatenate(steps[e * per_epoch : (e + 1) * per_epoch])) == list(range(n))
    if n % size != 1 or n < size:
        plain, _ = cut(n, size, epochs)
        assert all((a == b).all() for a, b in zip(plain, steps, strict=True))
    assert made.largest() == max(lengths)


@given(sizes, a_batch, st.integers(1, 30))
def test_so_many_steps_are_so_many_whatever_the_size(n, size, wanted):
    steps, _ = cut(n, size, None, wanted)
    assert len(steps) == wanted
    per_epoch = -(-n // size)
    for e in range(wanted // per_epoch):  # whole epochs see each example once
        assert sorted(np.concatenate(steps[e * per_epoch : (e + 1) * per_epoch])) == list(range(n))


@given(sizes, st.integers(1, 3))
def test_without_a_batch_size_all_come_at_once_in_their_order(n, epochs):
    steps, _ = cut(n, None, epochs)
    assert len(steps) == epochs
    assert all((s == np.arange(n)).all() for s in steps)


def test_epochs_are_shuffled_anew():
    steps, _ = cut(50, 50, 3)
    assert not (steps[0] == np.arange(50)).all()
    assert not (steps[0] == steps[1]).all()
    assert not (steps[1] == steps[2]).all()


@pytest.mark.parametrize("change", [{"seed": 4}, {"round": 3}, {"client": "b"}])
def test_the_order_is_a_function_of_seed_round_and_client(change):
    first, _ = cut(50, 50, 1)
    again, _ = cut(50, 50, 1)
    changed, _ = cut(50, 50, 1, **change)
    np.testing.assert_array_equal(first[0], again[0])
    assert not (first[0] == changed[0]).all()


def test_more_epochs_begin_with_the_same_ones():
    """So a client's first epoch does not depend on how many follow."""
    one, _ = cut(20, 7, 1)
    three, _ = cut(20, 7, 3)
    for a, b in zip(one, three, strict=False):
        np.testing.assert_array_equal(a, b)


def test_the_first_batch_is_a_uniform_draw():
    """Every example is in the first half about half of the time."""
    hits = np.zeros(10)
    for round in range(2000):
        hits[batches(10, 5, 1, None, seed=0, round=round, client="a")[0]] += 1
    assert np.abs(hits / 2000 - 0.5).max() < 5 * np.sqrt(0.25 / 2000)


# ------------------------------------------------------------ a walk that goes on from round to round


def walk(n, size, cuts, **more):
    """The batches of a walk that is cut into rounds of these many steps."""
    found, first = [], 0
    for steps in cuts:
        made = onward(n, size, first, steps, **{"seed": 3, "client": "a", **more})
        assert len(made) == steps
        found += [made[s] for s in range(steps)]
        first += steps
    return found


@given(sizes, a_batch, st.lists(st.integers(1, 9), min_size=1, max_size=12), st.booleans())
def test_however_rounds_are_cut_every_example_comes_once_an_epoch(n, size, cuts, pairs):
    steps, per_epoch = walk(n, size, cuts, pairs=pairs), epoch_steps(n, size, pairs=pairs)
    whole = walk(n, size, [sum(cuts)], pairs=pairs)
    for found, expected in zip(steps, whole, strict=True):
        np.testing.assert_array_equal(found, expected)
    for start in range(0, len(steps) - per_epoch + 1, per_epoch):
        assert sorted(np.concatenate(steps[start : start + per_epoch])) == list(range(n))
    assert max(len(step) for step in steps) <= max(2, size + pairs)


def test_each_epoch_client_and_seed_has_an_order_of_its_own():
    orders = [np.concatenate(walk(50, 10, [5], **more)).tolist() for more in ({}, {"client": "b"}, {"seed": 4})]
    orders.append(np.concatenate(walk(50, 10, [10])[5:]).tolist())
    assert len({tuple(order) for order in orders}) == 4
    assert np.concatenate(walk(50, 10, [5])).tolist() == orders[0]


def test_all_at_once_is_in_its_own_order():
    assert [step.tolist() for step in walk(3, None, [1, 2])] == [[0, 1, 2]] * 3
