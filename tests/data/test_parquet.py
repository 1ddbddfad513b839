"""A Parquet file by client: the same clients as its columns in memory."""

import cloudpickle
import numpy as np
import pytest
from data_cases import equal_runs, same

from insitu.core.errors import DataError
from insitu.data import Clients
from insitu.data.encode import one_hot

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 60
SITES = np.array(["va", "cleveland", "basel"])


@pytest.fixture
def made():
    rng = np.random.default_rng(4)
    return {
        "age": rng.integers(20, 80, N),
        "site": SITES[rng.integers(0, 3, N)],
        "sex": np.array(["f", "m"])[rng.integers(0, 2, N)],
        "ill": rng.integers(0, 2, N),
        "pressure": rng.normal(size=N).astype(np.float32),
    }


def write(path, columns, rows=13, **more):
    pq.write_table(pa.table({**columns, **more}), path, row_group_size=rows)
    return path


@pytest.fixture
def file(tmp_path, made):
    return write(tmp_path / "t.parquet", made)


def in_memory(made, holdout=0.0, label="ill"):
    x = np.column_stack([made["age"], one_hot(made["sex"])[0], made["pressure"]])
    return Clients.by_key(x, made[label], made["site"], holdout=holdout)


FEATURES = ["age", "sex", "pressure"]


@pytest.mark.parametrize("rows", [1, 13, 1000])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_clients_are_those_in_memory(tmp_path, made, rows, holdout):
    path = write(tmp_path / "t.parquet", made, rows)
    same(Clients.from_parquet(path, "site", "ill", holdout=holdout), in_memory(made, holdout))
    there = Clients.from_parquet(path, "site", "sex", features=["pressure"], holdout=holdout)
    same(there, Clients.by_key(made["pressure"][:, None], made["sex"], made["site"], holdout=holdout))


def test_keys_that_are_numbers(file, made):
    clients = Clients.from_parquet(file, by="age", label="ill", features=["pressure"])
    same(clients, Clients.by_key(made["pressure"][:, None], made["ill"], made["age"]))
    sizes = np.unique(made["age"], return_counts=True)[1]
    assert [clients.size_at(place) for place in range(len(clients))] == sizes.tolist()


@pytest.mark.parametrize("fixed", [True, False])
def test_lists_of_numbers(tmp_path, made, fixed):
    pixels = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    kind = pa.list_(pa.float32(), 5) if fixed else pa.list_(pa.float32())
    path = write(tmp_path / "t.parquet", made, pixels=pa.array(list(pixels), kind))
    clients = Clients.from_parquet(path, "site", "ill", features=["pixels"])
    same(clients, Clients.by_key(pixels, made["ill"], made["site"]))
    assert clients.at(0).data.x.dtype == np.float32


def test_dictionaries(tmp_path, made):
    coded = {name: pa.array(made[name]).dictionary_encode() for name in ("site", "sex")}
    same(Clients.from_parquet(write(tmp_path / "t", {**made, **coded}), "site", "ill"), in_memory(made))


def test_goes_to_workers_by_name(file):
    clients = Clients.from_parquet(file, "site", "ill")
    clients.at(0)
    there = cloudpickle.loads(cloudpickle.dumps(clients))
    assert np.array_equal(there.at(2).data.x, clients.at(2).data.x)


def test_a_missing_value_is_its_clients(tmp_path, made):
    row = int(np.flatnonzero(made["site"] == "cleveland")[0])
    ages = [None if i == row else int(age) for i, age in enumerate(made["age"])]
    clients = Clients.from_parquet(
        write(tmp_path / "t.parquet", {**made, "age": ages}), "site", "ill", features=["age"]
    )
    with pytest.raises(DataError, match=f"client 'cleveland': x holds NaN in column 'age' at row {row}"):
        clients["cleveland"]
    for other in ("basel", "va"):
        x = clients[other].data.x
        assert x.dtype == np.int64
        assert np.array_equal(x[:, 0], made["age"][made["site"] == other])


def test_what_cannot_be_read(tmp_path, made, file):
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Clients.from_parquet(tmp_path / "none", "site")
    (tmp_path / "text").write_text("age,site")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Clients.from_parquet(tmp_path / "text", "site")
    for wrong in ({"by": "hospital"}, {"by": "site", "label": "hospital"}, {"by": "site", "features": ["hospital"]}):
        with pytest.raises(DataError, match="'hospital' is no column of"):
            Clients.from_parquet(file, **wrong)
    with pytest.raises(DataError, match="no column to learn from"):
        Clients.from_parquet(write(tmp_path / "t", {"site": made["site"]}), "site")
    with pytest.raises(DataError, match="has no rows"):
        Clients.from_parquet(write(tmp_path / "t", {"site": [], "age": []}), "site")
    dates = np.array(["2024-01-01"] * N, dtype="datetime64[s]")
    with pytest.raises(DataError, match="column 'when' holds timestamp"):
        Clients.from_parquet(write(tmp_path / "t", {**made, "when": dates}), "site", "ill")
    sites = [None if i == 3 else str(site) for i, site in enumerate(made["site"])]
    with pytest.raises(DataError, match=r"by='site' hold None at row 3"):
        Clients.from_parquet(write(tmp_path / "t", {**made, "site": sites}), "site", "ill")


def test_lists_of_unequal_lengths(tmp_path, made):
    path = write(tmp_path / "t", made, items=[[1.0] * (2 if i == 50 else 1) for i in range(N)])
    with pytest.raises(DataError, match="column 'items' holds lists of unequal lengths"):
        for _ in Clients.from_parquet(path, "site", "ill", features=["items"]):
            pass


def test_a_file_that_has_changed(tmp_path, made, file):
    there = cloudpickle.dumps(Clients.from_parquet(file, "site", "ill"))
    write(file, {**made, "more": np.arange(N)})
    with pytest.raises(DataError, match="is not the file that it was"):
        cloudpickle.loads(there).at(0)


@pytest.mark.parametrize("engine", ["inline", "vectorized", "processes"])
def test_a_run_gives_the_same_bits(file, made, engine):
    equal_runs(Clients.from_parquet(file, "site", "ill"), in_memory(made), engine)


@pytest.mark.parametrize("dictionary", [True, False])
def test_what_is_named_to_the_disk_is_what_is_read(tmp_path, made, monkeypatch, dictionary):
    monkeypatch.setattr("insitu.data.parquet.BETWEEN", 0)
    path = tmp_path / "t.parquet"
    pixels = pa.array([[float(i), 1.0] for i in range(N)], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({**made, "pixels": pixels}), path, row_group_size=20, use_dictionary=dictionary)
    clients = Clients.from_parquet(path, "age", "ill", features=["pressure", "pixels"])
    told = []
    monkeypatch.setattr("insitu.data.reading.File.soon", lambda self, offset, size: told.append((offset, size)))
    row = 33
    place = clients.place_of(str(made["age"][row]))
    clients._source.soon(place)
    group = pq.ParquetFile(path).metadata.row_group(row // 20)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    wanted = [chunks["pressure"], chunks["pixels.list.element"]]
    covered = {byte for offset, size in told for byte in range(offset, offset + size)}
    for chunk in wanted:
        first = chunk.dictionary_page_offset or chunk.data_page_offset
        assert covered >= set(range(first, first + chunk.total_compressed_size))
    other = chunks["site"]
    assert other.data_page_offset not in covered
    assert np.array_equal(clients.at(place).data.x[:, 1:], np.array(pixels.to_pylist())[clients.at(place).data.rows])
