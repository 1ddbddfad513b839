"""Numbers that lie in a Parquet file as they do in memory are read so; all others by Arrow, with the same answer."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from data_cases import same

from insitu.core.errors import DataError
from insitu.data import Clients, pages, reading

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N, WIDTH = 90, 7
RNG = np.random.default_rng(2)
VALUES = RNG.normal(size=(N, WIDTH))
KEYS = np.arange(N) // 15
LEVELS = ("repetition", "definition")
PLAIN = {"use_dictionary": False, "compression": "none"}


def table(values=VALUES, kind=None, width=WIDTH, nullable=True):
    kind = pa.from_numpy_dtype(values.dtype) if kind is None else kind
    fields = [
        pa.field("client", pa.int32()),
        pa.field("y", pa.int64()),
        pa.field("x", pa.list_(kind, width) if width > 1 else kind, nullable=nullable),
    ]
    column = pa.array(values.ravel(), kind)
    lists = pa.FixedSizeListArray.from_arrays(column, width) if width > 1 else column
    return pa.table([pa.array(KEYS, pa.int32()), pa.array(KEYS % 2), lists], schema=pa.schema(fields))


@pytest.fixture
def read_as_they_are(monkeypatch):
    """How many columns of row groups were."""
    found, whole = [], pages.numbers

    def numbers(*args):
        found.append(whole(*args))
        return found[-1]

    monkeypatch.setattr(pages, "numbers", numbers)
    return found


def both(path, monkeypatch, **given):
    """The same clients, as they are where that goes and by Arrow alone; dtypes included."""
    mine = list(Clients.from_parquet(path, "client", "y", **given))
    with monkeypatch.context() as patch:
        patch.setattr(pages, "as_they_are", lambda *_: False)
        same(Clients.from_parquet(path, "client", "y", **given), Clients.from_parquet(path, "client", "y", **given))
        for one, other in zip(mine, Clients.from_parquet(path, "client", "y", **given), strict=True):
            assert one.data.x.dtype == other.data.x.dtype
            assert one.data.x.tobytes() == other.data.x.tobytes()
            assert one.data.x.flags.writeable
    return mine


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64])
@pytest.mark.parametrize("width", [1, WIDTH])
@pytest.mark.parametrize("rows", [15, 30, 20])  # a client's own group, two clients', across groups
def test_numbers_of_every_kind(tmp_path, monkeypatch, read_as_they_are, dtype, width, rows):
    values = (VALUES * 1000).astype(np.int64).astype(dtype).reshape(-1, width)[:N]
    pq.write_table(table(values, width=width), tmp_path / "t", row_group_size=rows, **PLAIN)
    clients = both(tmp_path / "t", monkeypatch)
    assert np.array_equal(np.concatenate([c.data.x for c in clients]), values)
    assert read_as_they_are
    assert all(read_as_they_are)


@pytest.mark.parametrize("nullable", [True, False])
def test_several_pages_and_columns(tmp_path, monkeypatch, read_as_they_are, nullable):
    given = table(nullable=nullable).append_column("z", pa.array(np.arange(N, dtype=np.float64)))
    pq.write_table(given, tmp_path / "t", row_group_size=30, data_page_size=64, write_batch_size=4, **PLAIN)
    clients = both(tmp_path / "t", monkeypatch)
    assert clients[2].data.x.shape == (15, WIDTH + 1)
    assert all(read_as_they_are)
    clients = both(tmp_path / "t", monkeypatch, features=["z", "x"])  # not in the file's order
    assert clients[0].data.x[3, 0] == 3


def test_checksums_and_statistics_in_headers(tmp_path, monkeypatch, read_as_they_are):
    pq.write_table(table(), tmp_path / "t", row_group_size=15, write_page_checksum=True, **PLAIN)
    both(tmp_path / "t", monkeypatch)
    assert read_as_they_are
    assert all(read_as_they_are)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False, "compression": "snappy"},
        {"use_dictionary": True, "compression": "none"},
        {**PLAIN, "write_statistics": False},
        {**PLAIN, "use_byte_stream_split": ["x.list.element"]},
        {**PLAIN, "data_page_version": "2.0"},
    ],
)
def test_what_is_written_in_another_way_is_arrows(tmp_path, monkeypatch, read_as_they_are, options):
    pq.write_table(table(), tmp_path / "t", row_group_size=15, **options)
    both(tmp_path / "t", monkeypatch)
    assert not any(read_as_they_are)


def test_small_whole_numbers_and_lists_of_any_length_are_arrows(tmp_path, monkeypatch, read_as_they_are):
    pq.write_table(table((VALUES * 9).astype(np.int16)), tmp_path / "t", row_group_size=15, **PLAIN)
    both(tmp_path / "t", monkeypatch)
    lists = table().set_column(2, "x", pa.array(list(VALUES), pa.list_(pa.float64())))
    pq.write_table(lists, tmp_path / "t", row_group_size=15, **PLAIN)
    both(tmp_path / "t", monkeypatch)
    assert read_as_they_are == []


def test_a_missing_or_infinite_number_is_its_clients(tmp_path, read_as_they_are):
    values = VALUES.copy()
    values[17, 3] = np.inf
    pq.write_table(table(values), tmp_path / "t", row_group_size=15, **PLAIN)
    clients = Clients.from_parquet(tmp_path / "t", "client", "y")
    assert len(clients.at(0).data) == 15
    with pytest.raises(DataError, match=r"client '1': x holds inf in column 'x\[3\]' at row 17"):
        clients.at(1)
    assert all(read_as_they_are)
    column = pa.array([None if i == 17 else float(i) for i in range(N)])
    given = table().set_column(2, "x", column)
    pq.write_table(given, tmp_path / "t", row_group_size=15, **PLAIN)
    clients = Clients.from_parquet(tmp_path / "t", "client", "y")
    assert clients.at(0).data.x[4, 0] == 4
    with pytest.raises(DataError, match="client '1': x holds NaN"):
        clients.at(1)


def test_headers_that_make_no_sense_are_left_to_arrow(tmp_path):
    """Any byte of a header may be another: what is found is the numbers, or nothing, and never an exception."""
    pq.write_table(table(), tmp_path / "t", row_group_size=15, **PLAIN)
    chunk = pq.ParquetFile(tmp_path / "t").metadata.row_group(0).column(2)
    whole = np.fromfile(tmp_path / "t", np.uint8)
    start, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    into = np.empty((15, WIDTH))
    outcomes = set()
    for place in range(start, min(start + 40, end)):
        for value in (0, 1, 127, 255, int(whole[place]) ^ 1):
            changed = whole.copy()
            changed[place] = value
            changed.tofile(tmp_path / "changed")
            outcomes.add(pages.numbers(reading.File(str(tmp_path / "changed")), chunk, LEVELS, into))
    assert outcomes == {True, False}
    whole[start:end].tofile(tmp_path / "changed")  # nothing but the column: its offset lies behind the end
    with pytest.raises(OSError, match="the file ends"):
        pages.numbers(reading.File(str(tmp_path / "changed")), chunk, LEVELS, into)


class Told:
    """A column's metadata as it is, but for its statistics and whatever else is given."""

    def __init__(self, chunk, **other):
        self._chunk = chunk
        vars(self).update(other)

    def __getattr__(self, name):
        return getattr(self._chunk, name)


NO_NULLS = SimpleNamespace(has_null_count=True, null_count=0)


@pytest.mark.parametrize("width", [1, WIDTH])
@pytest.mark.parametrize("missing", [[0], [3, 4], [29]])
def test_statistics_that_are_wrong_are_found_out_at_the_pages(tmp_path, width, missing):
    """They say that nothing is missing: the numbers behind a missing one must not move up, nor levels be numbers."""
    values = [None if i // width in missing else float(i) for i in range(30 * width)]
    column = pa.array(values, pa.float64())
    lists = pa.FixedSizeListArray.from_arrays(column, width) if width > 1 else column
    pq.write_table(pa.table({"x": lists}), tmp_path / "t", data_page_size=64, write_batch_size=4, **PLAIN)
    opened = pq.ParquetFile(tmp_path / "t").metadata
    chunk = opened.row_group(0).column(0)
    dtype = np.dtype(np.float64)
    assert chunk.statistics.null_count == len(missing) * width
    assert not pages.as_they_are(chunk, dtype, 30 * width)
    chunk = Told(chunk, statistics=NO_NULLS)
    assert pages.as_they_are(chunk, dtype, 30 * width)  # is believed, to begin with
    file, levels = reading.File(str(tmp_path / "t")), pages.levels_of(opened.schema.column(0))
    assert not pages.numbers(file, chunk, levels, np.empty((30, width)))


def test_levels_by_column():
    for column, expected in (((0, 0), ()), ((0, 1), ("definition",)), ((1, 3), ("repetition", "definition"))):
        given = SimpleNamespace(max_repetition_level=column[0], max_definition_level=column[1])
        assert pages.levels_of(given) == expected


@pytest.mark.parametrize("encodings", [("RLE", "BYTE_STREAM_SPLIT"), ("RLE", "DELTA_BINARY_PACKED", "PLAIN")])
def test_other_encodings_are_known_before_anything_is_read(tmp_path, encodings):
    pq.write_table(table(width=1, values=VALUES[:, :1]), tmp_path / "t", **PLAIN)
    chunk = pq.ParquetFile(tmp_path / "t").metadata.row_group(0).column(2)
    assert pages.as_they_are(chunk, np.dtype(np.float64), N)
    assert not pages.as_they_are(Told(chunk, encodings=encodings), np.dtype(np.float64), N)


def test_a_file_that_is_refused_at_its_pages_is_refused_once(tmp_path, read_as_they_are):
    pq.write_table(table(), tmp_path / "t", row_group_size=15, **{**PLAIN, "data_page_version": "2.0"})
    clients = Clients.from_parquet(tmp_path / "t", "client", "y")
    assert len([clients.at(place) for place in range(6)]) == 6
    assert read_as_they_are == [False]


def test_larger_than_memory_several_threads_read(tmp_path, monkeypatch):
    pq.write_table(table(), tmp_path / "t", row_group_size=15, **PLAIN)
    expected = list(Clients.from_parquet(tmp_path / "t", "client", "y"))
    monkeypatch.setattr("insitu.data.parquet.stays_cached", lambda size: 0)
    monkeypatch.setattr(reading, "stays_cached", lambda size: 0)
    monkeypatch.setattr(reading, "POOLED", 1)
    clients = Clients.from_parquet(tmp_path / "t", "client", "y")
    assert clients._source.readers == clients._prefetch._threads == 4
    clients.ahead(range(6))
    for place, one in enumerate(expected):
        assert np.array_equal(clients.at(place).data.x, one.data.x)
    for thread in threading.enumerate():
        if thread.name == "insitu prefetch":
            thread.join(30)
    pq.write_table(table(), tmp_path / "shared", row_group_size=20, **PLAIN)  # of several clients: kept for the next
    assert Clients.from_parquet(tmp_path / "shared", "client", "y")._source.readers == 1
    with pq.ParquetWriter(tmp_path / "gaps", table().schema, **PLAIN) as writer:
        for rows in (table()[:15], table()[:0], table()[15:], table()[:0]):
            writer.write_table(rows, row_group_size=15)
    assert Clients.from_parquet(tmp_path / "gaps", "client", "y")._source.readers == 4
    pq.write_table(table(), tmp_path / "packed", row_group_size=15)  # compressed: the processor is what takes time
    assert Clients.from_parquet(tmp_path / "packed", "client", "y")._source.readers == 1
