"""Finding, checking and unpacking files, and the data sets by name."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from insitu.core.errors import DataError, PlanError
from insitu.data import DataSet, load
from insitu.data.files import Files, idx, roots
from insitu.data.sets import names, reader

CONTENT = b"63,1,1\n67,?,4\n"
PACKED = gzip.compress(CONTENT)
FILES = Files(
    "toy",
    "https://example.org/toy",
    {
        "toy.data": hashlib.sha256(CONTENT).hexdigest(),
        "toy.data.gz": hashlib.sha256(PACKED).hexdigest(),
    },
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("INSITU_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    return tmp_path / "toy"


def test_packed_or_not(folder, tmp_path):
    (folder / "toy.data").write_bytes(CONTENT)
    assert FILES.read("toy.data", tmp_path) == FILES.read("toy.data.gz", tmp_path) == CONTENT
    (folder / "toy.data.gz").write_bytes(PACKED)
    assert FILES.find("toy.data.gz", tmp_path).suffix == ".gz"
    assert FILES.read("toy.data.gz", tmp_path) == CONTENT


def test_the_folder_itself_will_do(folder):
    (folder / "toy.data").write_bytes(CONTENT)
    assert FILES.read("toy.data", folder) == CONTENT


def test_the_argument_comes_before_the_environment(folder, tmp_path, monkeypatch):
    (folder / "toy.data").write_bytes(CONTENT)
    monkeypatch.setenv("INSITU_DATA", str(tmp_path))
    assert FILES.read("toy.data") == CONTENT
    with pytest.raises(DataError, match="elsewhere"):
        FILES.read("toy.data", tmp_path / "elsewhere")


def test_beside_the_current_directory(folder, tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "project").mkdir()
    folder.rename(tmp_path / "shared" / "data")
    (tmp_path / "shared" / "data" / "toy.data").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path / "project")
    assert roots()[0] == tmp_path / "shared" / "data"
    assert FILES.read("toy.data") == CONTENT


def test_absent(folder, tmp_path):
    with pytest.raises(DataError) as caught:
        FILES.read("toy.data", tmp_path)
    for part in (
        "'toy.data'",
        "'toy'",
        str(folder),
        "https://example.org/toy",
        "root=",
        "export INSITU_DATA=",
    ):
        assert part in str(caught.value)


def test_damaged(folder, tmp_path):
    (folder / "toy.data").write_bytes(CONTENT + b"x")
    with pytest.raises(DataError, match=r"SHA-256 [0-9a-f]{64}, expected .* damaged or another version"):
        FILES.read("toy.data", tmp_path)


class TestIdx:
    def test_reads_what_was_written(self):
        for kind, code in ((np.uint8, 8), (np.int8, 9), (np.int16, 11), (np.int32, 12), (np.float64, 14)):
            array = np.arange(24).reshape(2, 3, 4).astype(kind)
            swapped = array.astype(array.dtype.newbyteorder(">"))
            content = bytes([0, 0, code, 3]) + struct.pack(">3I", 2, 3, 4) + swapped.tobytes()
            found = idx(content, "x")
            assert found.dtype == kind
            assert np.array_equal(found, array)

    @pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00", b"\0\0\x07\x01\0\0\0\0", b"\0\0\x08"])
    def test_not_idx(self, content):
        with pytest.raises(DataError, match=r"'x' begins with .* not IDX"):
            idx(content, "x")

    @pytest.mark.parametrize(
        "content",
        [
            b"\0\0\x08\x01\0\0\0\x05abcd",
            b"\0\0\x08\x02\0\0\0\x02",
            b"\0\0\x08\x01\0\0\0\x01ab",
            b"\0\0\x08\xff",
        ],
    )
    def test_cut_short(self, content):
        with pytest.raises(DataError, match="cut short"):
            idx(content, "x")


class TestByName:
    def test_names(self):
        bundled = {"breast_cancer", "diabetes", "digits", "iris", "wine"}
        in_files = {"adult", "fashion_mnist", "heart", "mnist", "parkinsons", "shakespeare"}
        assert set(names()) == bundled | in_files

    @pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "digits", "iris", "wine"])
    def test_bundled(self, name):
        datasets = pytest.importorskip("sklearn.datasets")
        expected = getattr(datasets, f"load_{name}")()
        data, raw = load(name), load(name, scale=False)
        assert isinstance(data, DataSet)
        assert np.array_equal(raw.x, expected.data)
        assert np.array_equal(raw.y, expected.target)
        assert data.x.shape == (len(data), len(data.features))
        if name == "digits":
            assert (data.x.min(), data.x.max()) == (0, 1)
        else:
            assert np.allclose(data.x.mean(axis=0), 0)
            assert np.allclose(data.x.std(axis=0), 1)
        assert len(data.classes) == (0 if name == "diabetes" else len(set(data.y)))
        assert len(data.clients([[0, 1], [2]])) == 2

    def test_of_files(self, data_root):
        data = load("heart", root=data_root, target="severity")
        assert data.name == "heart"
        assert "4 natural clients" in repr(data)

    def test_unknown(self):
        with pytest.raises(PlanError, match=r"there is no data set 'minst': did you mean 'mnist'\?"):
            load("minst")
        with pytest.raises(PlanError, match="there are adult, breast_cancer"):
            reader("zzz")
        for not_a_set in ("clients", "files", "sets", "__init__", "../data/heart", None):
            with pytest.raises(PlanError, match="there is no data set"):
                load(not_a_set)

    def test_unknown_option(self):
        with pytest.raises(PlanError, match="'iris' has no option 'rot': it has scale"):
            load("iris", rot="/")
