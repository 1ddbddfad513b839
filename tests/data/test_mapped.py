"""Arrays in files: the same clients as in memory, read by client, never as a whole."""

import pickle

import cloudpickle
import numpy as np
import pytest
from data_cases import equal_runs, same

from insitu.core.errors import DataError
from insitu.core.types import Schema
from insitu.data import Clients
from insitu.data.mapped import Mapped, mapped

N, D = 60, 4
PARTS = [np.arange(0, 7), np.array([9, 40, 11, 33]), np.arange(12, 30), np.array([59])]


@pytest.fixture
def made():
    rng = np.random.default_rng(3)
    return rng.normal(size=(N, D)).astype(np.float32), rng.integers(0, 3, N)


@pytest.fixture
def files(tmp_path, made):
    np.save(tmp_path / "x.npy", made[0])
    np.save(tmp_path / "y.npy", made[1])
    return tmp_path / "x.npy", tmp_path / "y.npy"


@pytest.mark.parametrize("holdout", [0.0, 0.4])
def test_clients_are_those_in_memory(files, made, holdout):
    same(Clients.from_npy(*files, PARTS, holdout=holdout), Clients.from_arrays(*made, PARTS, holdout=holdout))
    keys = np.arange(N) % 7
    there = Clients.by_key(np.load(files[0], mmap_mode="r"), np.load(files[1], mmap_mode="r"), keys, holdout=holdout)
    same(there, Clients.by_key(*made, keys, holdout=holdout))
    assert np.array_equal(there.pooled().x, Clients.by_key(*made, keys, holdout=holdout).pooled().x)


def test_a_dict_of_files_and_labels_in_memory(files, made):
    clients = Clients.from_npy({"a": files[0], "b": {"c": files[1]}}, made[1], PARTS)
    assert np.array_equal(clients.at(1).data.x["a"], made[0][PARTS[1]])
    assert np.array_equal(clients.at(1).data.x["b"]["c"], made[1][PARTS[1]])


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[5:50],
        lambda a: a[::-2, 1:],
        lambda a: a.T,
        lambda a: np.asarray(a)[3:].reshape(-1, 2, 2),
        lambda a: a.view(np.uint32),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_views_are_found_in_their_file(tmp_path, made, view, order):
    np.save(tmp_path / "x.npy", np.asarray(made[0], order=order))
    try:
        expected = view(np.load(tmp_path / "x.npy", mmap_mode="r"))
    except ValueError:
        pytest.skip("NumPy has no such view in this order")
    found = mapped(np.asarray(expected))
    if not isinstance(found, Mapped):  # NumPy had to copy to reshape
        assert order == "F"
        return
    assert np.array_equal(pickle.loads(pickle.dumps(found))[:], expected)


def test_a_raw_file_with_an_offset(tmp_path, made):
    with open(tmp_path / "raw", "wb") as file:
        file.write(b"12345" * 1001)
        file.write(made[0].tobytes())
    array = np.memmap(tmp_path / "raw", np.float32, "r", offset=5005, shape=(N, D))
    assert np.array_equal(mapped(array)[7:9], made[0][7:9])


def test_what_is_not_its_file_stays_an_array(files, made):
    changed = np.load(files[0], mmap_mode="c")
    changed[0] = 5
    assert mapped(changed) is changed
    assert mapped(made[0]) is made[0]


def test_only_a_clients_rows_are_in_memory(files):
    clients = Clients.from_npy(*files, PARTS)
    rows = clients.at(0).data.x
    assert rows.nbytes == 7 * D * 4
    assert rows.base is None or rows.base.nbytes == rows.nbytes


def test_sent_by_name(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((50_000, 20)))
    clients = Clients.from_npy(tmp_path / "x.npy", np.arange(50_000) % 2, np.split(np.arange(50_000), 10))
    there = cloudpickle.dumps(clients)
    assert len(there) < 1_000_000  # row numbers and labels, not the 8 MB of examples
    assert cloudpickle.loads(there).at(3).data.x.shape == (5000, 20)


@pytest.mark.parametrize("near", [0, 40, 10_000])
@pytest.mark.parametrize("piece", [64, 8 << 20])
def test_rows_in_any_order(files, made, monkeypatch, near, piece):
    monkeypatch.setattr("insitu.data.mapped.GAP", near)
    monkeypatch.setattr("insitu.data.mapped.STRETCH", piece)
    there = mapped(np.load(files[0], mmap_mode="r"))
    rng = np.random.default_rng(7)
    for rows in (rng.integers(0, N, 30), rng.permutation(N), np.array([59]), np.arange(N)[::-1], np.array([], int)):
        assert np.array_equal(there[rows], made[0][rows])
        assert there.soon(rows) >= len(np.unique(rows)) * D * 4
    assert np.array_equal(there[5:9], made[0][5:9])
    assert there.soon(slice(5, 9)) == 4 * D * 4
    assert np.array_equal(there[-3:], made[0][-3:])
    assert np.array_equal(there[np.array([-1, 2])], made[0][[-1, 2]])
    assert np.array_equal(there[np.arange(N) < 3], made[0][:3])


def test_columns_one_after_the_other_are_read_too_and_not_named(tmp_path, made):
    np.save(tmp_path / "x.npy", np.asfortranarray(made[0]))
    there = mapped(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert np.array_equal(there[np.array([7, 3])], made[0][[7, 3]])
    assert there.soon(np.array([7, 3])) == 0


def test_a_file_that_is_cut_off_while_it_is_read(files):
    clients = Clients.from_npy(*files, PARTS)
    assert len(clients.at(0).data) == 7
    with open(files[0], "r+b") as file:
        file.truncate(400)
    with pytest.raises(DataError, match=r"x\.npy, in which the clients' data lie, cannot be read: the file ends at"):
        clients.at(3)


def test_a_bad_value_is_its_clients(tmp_path, made):
    x = made[0].copy()
    x[33, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    clients = Clients.from_npy(tmp_path / "x.npy", made[1], PARTS)
    assert len(clients.at(0).data) == 7
    with pytest.raises(DataError, match="client '1': x holds NaN in column 2 at row 33"):
        clients.at(1)


def test_classes_that_the_schema_lacks(files):
    with pytest.raises(DataError, match="y holds 2 at row"):
        Clients.from_npy(*files, PARTS, schema=Schema((D,), np.arange(2)))


def test_a_file_that_has_changed(files):
    clients = Clients.from_npy(*files, PARTS)
    with open(files[0], "ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"x\.npy has .* bytes and had"):
        clients.at(0)
    files[0].unlink()
    with pytest.raises(DataError, match=r"x\.npy, in which the clients' data lie, cannot be read"):
        clients.at(0)


def test_what_is_no_npy_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.npy cannot be read"):
        Clients.from_npy(tmp_path / "none.npy")
    np.savez(tmp_path / "two.npz", a=np.arange(3))
    with pytest.raises(DataError, match=r"not numpy\.savez"):
        Clients.from_npy(tmp_path / "two.npz")
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    with pytest.raises(DataError, match="holds no array that can be mapped"):
        Clients.from_npy(tmp_path / "objects.npy")


@pytest.mark.parametrize("engine", ["inline", "vectorized", "processes"])
def test_a_run_gives_the_same_bits(files, made, engine):
    equal_runs(Clients.from_npy(*files, PARTS), Clients.from_arrays(*made, PARTS), engine)
