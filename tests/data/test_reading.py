"""Files that are read here and there, and memory that is used again without two ever holding it."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insitu.data import reading
from insitu.data.reading import POOLED, File, Pool

BYTES = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    BYTES.tofile(tmp_path / "bytes")
    return str(tmp_path / "bytes")


@pytest.mark.parametrize(("offset", "size"), [(0, 5000), (17, 0), (4999, 1), (1000, 2024)])
def test_the_bytes_that_lie_there(path, offset, size):
    file, into = File(path), np.zeros(size, np.uint8)
    file.read(offset, into)
    assert file.size == 5000
    assert np.array_equal(into, BYTES[offset : offset + size])
    with pytest.raises(OSError, match="the file ends at byte 5000"):
        file.read(4990, np.zeros(11, np.uint8))


def test_reads_that_come_in_pieces(path, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: whole(file, [buffers[0][:700]], offset))
    into = np.zeros((2, 1000), np.uint8)
    File(path).read(3, into)
    assert np.array_equal(into.ravel(), BYTES[3:2003])


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
def test_what_the_system_is_told(path, monkeypatch):
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *rest: told.append(rest))
    monkeypatch.setattr(reading, "AT_ONCE", 1000)
    file = File(path)
    file.soon(100, 2500)
    next_ = os.POSIX_FADV_WILLNEED
    assert told == [(0, 0, os.POSIX_FADV_RANDOM), (100, 1000, next_), (1100, 1000, next_), (2100, 500, next_)]


def test_closed_when_nobody_has_it_any_more(path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    file = File(path)
    with pytest.raises(TypeError, match="an open file cannot be sent"):
        pickle.dumps(file)
    del file
    with pytest.raises(FileNotFoundError):
        File(path + "none")
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_memory_comes_back_when_the_last_view_is_gone():
    pool = Pool()
    first = pool.empty((POOLED // 4, 2), np.dtype(np.float32))
    address, view = first.ctypes.data, first[3:5]
    assert first.flags.writeable
    del first
    other = pool.empty((POOLED // 4, 2), np.dtype(np.float32))
    assert other.ctypes.data != address
    del view
    assert pool.empty((POOLED // 4, 2), np.dtype(np.float32)).ctypes.data == address


def test_no_more_lies_idle_than_is_allowed():
    pool = Pool(kept=3 * POOLED)
    held = [pool.empty((POOLED,), np.dtype(np.uint8)) for _ in range(5)]
    held.clear()
    assert pool._idle == 3 * POOLED == sum(piece.nbytes for pieces in pool._pieces.values() for piece in pieces)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3 * POOLED)), max_size=30))
def test_nobody_writes_into_anothers_memory(steps):
    pool, held = Pool(), {}
    for number, (place, size) in enumerate(steps):
        held.pop(place, None)
        held[place] = pool.empty((size,), np.dtype(np.uint8)), number
        held[place][0][:] = number
        assert all((array == value).all() for array, value in held.values())
        assert all(len(array) <= array.base.base._piece.nbytes for array, _ in held.values() if len(array) >= POOLED)
