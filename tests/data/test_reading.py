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
    monkeypatch.setattr(reading, "NAMED", 1000)
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


# ------------------------------------------------------------ files larger than memory


LARGE = np.random.default_rng(1).integers(0, 256, 5 * POOLED + 1234, dtype=np.uint8)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file of which the first 70,000 bytes stay in the cache."""
    LARGE.tofile(tmp_path / "large")
    monkeypatch.setattr(reading, "stays_cached", lambda size: 70_000)
    return str(tmp_path / "large")


def test_a_share_of_the_memory_is_left_to_a_file(monkeypatch):
    monkeypatch.setattr(reading, "allowed_memory", lambda: 1000)
    assert [reading.stays_cached(size) for size in (0, 400, 500, 501, 10_000)] == [0, 400, 500, 500, 500]


@pytest.mark.parametrize("offset", [0, 8, 70_000, 77_777, 80_000, len(LARGE) - 2 * POOLED, len(LARGE) - POOLED])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_bytes_within_the_cache_and_past_it(large, offset, dtype):
    kind, file = np.dtype(dtype), File(large)
    count = POOLED // kind.itemsize
    found = file.array(offset, (count // 2, 2), kind)
    assert found.shape == (count // 2, 2)
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert found.flags.aligned
    assert found.tobytes() == LARGE[offset : offset + POOLED].tobytes()


def test_what_is_read_past_the_cache(large, monkeypatch):
    file, used, whole = File(large), [], os.preadv
    if file._past < 0:
        pytest.skip("this file system has no reads past the cache")

    def preadv(descriptor, buffers, offset):
        used.append((descriptor == file._past, offset))
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    kind = np.dtype(np.uint8)
    for offset, size in ((0, POOLED), (70_000, POOLED), (70_000, POOLED - 1)):
        assert np.array_equal(file.array(offset, (size,), kind), LARGE[offset : offset + size])
    assert used == [(False, 0), (True, 69_632), (False, 70_000)]
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *rest: told.append(rest[1:3]))
    file.soon(70_000, POOLED)  # the cache is not to have it
    file.soon(0, POOLED)
    assert told == [(0, POOLED)]


def test_where_the_disk_refuses_the_cache_is_read(large, monkeypatch):
    file, whole = File(large), os.preadv

    def preadv(descriptor, buffers, offset):
        if descriptor == file._past:
            raise OSError(22, "Invalid argument")
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    assert np.array_equal(file.array(80_000, (POOLED,), np.dtype(np.uint8)), LARGE[80_000 : 80_000 + POOLED])
    monkeypatch.setattr(reading.os, "O_DIRECT", 1 << 30, raising=False)  # no such flag, as on other systems
    assert np.array_equal(File(large).array(80_000, (POOLED,), np.dtype(np.uint8)), LARGE[80_000 : 80_000 + POOLED])


def test_a_large_file_that_ends_too_early(large):
    with pytest.raises(OSError, match=f"the file ends at byte {len(LARGE)}"):
        File(large).array(len(LARGE) - POOLED, (POOLED + 1,), np.dtype(np.uint8))
