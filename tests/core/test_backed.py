"""Memory that is a file: given back as it is gone through, and never lost."""

from __future__ import annotations

import gc
from tempfile import TemporaryFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from residence import resident

from insitu.core import arrays, backed, wire

MB = 2**20


@pytest.fixture
def array(tmp_path):
    with TemporaryFile(dir=tmp_path) as file:
        numbers = np.random.default_rng(0).normal(size=4 * MB)
        file.write(numbers.tobytes())
        file.flush()
        yield np.frombuffer(backed.of(file, numbers.nbytes), np.float64), numbers


def test_what_is_let_go_of_is_out_of_memory_and_comes_back(array):
    lying, numbers = array
    assert lying.sum() == numbers.sum()
    assert resident(lying) >= numbers.nbytes * 0.9
    backed.let_go(lying)
    assert resident(lying) == 0
    assert np.array_equal(lying, numbers)


def test_what_was_written_stays(array):
    lying, numbers = array
    lying[::1000] = 7.0
    backed.let_go(lying)
    numbers = numbers.copy()
    numbers[::1000] = 7.0
    assert np.array_equal(lying, numbers)


@given(st.integers(0, 4 * MB - 1), st.integers(0, 4 * MB))
@settings(max_examples=30, deadline=None)
def test_any_piece_can_be_let_go_of(tmp_path_factory, first, count):
    with TemporaryFile(dir=tmp_path_factory.getbasetemp()) as file:
        file.write(bytes(4 * MB))
        file.flush()
        lying = np.frombuffer(backed.of(file, 4 * MB), np.uint8)
        lying[:] = 3
        backed.let_go(lying[first : first + count])
        assert (lying == 3).all()


def test_adding_hashing_and_cutting_take_the_memory_of_a_piece(array):
    lying, numbers = array
    most = 2 * backed.PIECE
    total = np.ones_like(numbers)
    assert arrays.added_in_place(total, lying) is total
    assert np.array_equal(total, numbers + 1)
    assert resident(lying) <= most
    assert wire.digest({"w": lying}) == wire.digest({"w": numbers})
    assert resident(lying) <= most
    assert b"".join(wire.cut(wire.frame({"w": lying})[0], 3 * MB)) == b"".join(wire.frame({"w": numbers})[0])
    assert resident(lying) <= most


def test_of_other_memory_nothing_is_given_back(array):
    torch = pytest.importorskip("torch")
    for x in (np.ones(MB), torch.ones(MB), bytes(MB), memoryview(bytearray(MB)), np.ones(()), np.ones(0)):
        backed.let_go(x)
    own = np.ones(MB)
    backed.let_go(own)
    assert own.sum() == MB


def test_a_tensor_is_let_go_of_as_an_array_is(array):
    torch = pytest.importorskip("torch")
    lying, numbers = array
    tensor = torch.from_numpy(lying)
    total = torch.zeros(tensor.shape, dtype=tensor.dtype)
    arrays.added_in_place(total, tensor)
    assert resident(lying) <= 2 * backed.PIECE
    assert np.array_equal(total.numpy(), numbers)


def test_a_mapping_goes_with_its_last_array(tmp_path):
    before = len(backed._places)
    with TemporaryFile(dir=tmp_path) as file:
        file.write(bytes(MB))
        file.flush()
        lying = np.frombuffer(backed.of(file, MB), np.uint8)
    assert len(backed._places) == before + 1
    del lying
    gc.collect()
    assert len(backed._places) == before


def test_two_arrays_of_any_layout_are_added(array):
    for shape in ((3000, 700), (700, 3000)):
        x, y = np.ones(shape), np.arange(float(3000 * 700)).reshape(shape)
        assert np.array_equal(arrays.added_in_place(x.T.copy().T, y), y + 1)
        assert np.array_equal(arrays.added_in_place(x, y), y + 1)
