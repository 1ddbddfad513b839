"""The readers on the real files, against what is published about the data; skipped without the files."""

import gzip
from collections import Counter

import numpy as np
import pytest

from insitu.core.errors import DataError, PlanError
from insitu.data.adult import adult
from insitu.data.fashion_mnist import fashion_mnist
from insitu.data.heart import heart
from insitu.data.mnist import mnist
from insitu.data.parkinsons import parkinsons
from insitu.data.shakespeare import shakespeare, speeches


def min_median_max(counts):
    counts = sorted(counts)
    return counts[0], int(np.median(counts)), counts[-1]


def one_column(data, name):
    return data.x[:, data.features.index(name)]


@pytest.fixture(scope="module")
def digits(data_root):
    return mnist(data_root)


class TestMnist:
    def test_class_counts(self, digits):
        train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert np.bincount(digits.y).tolist() == train
        assert np.bincount(digits.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]

    def test_writers(self, digits):
        writers, test = Counter(digits.keys.tolist()), Counter(digits.keys_test.tolist())
        assert (len(writers), *min_median_max(writers.values())) == (539, 19, 116, 131)
        assert (len(test), *min_median_max(test.values())) == (297, 8, 21, 130)
        assert not writers.keys() & test.keys()

    def test_pixels(self, digits):
        assert digits.x.shape == (60_000, 784)
        assert digits.x_test.shape == (10_000, 784)
        assert digits.x.dtype == np.float32
        assert (digits.x.min(), digits.x.max()) == (0, 1)
        # The mean and deviation that everybody normalises MNIST with.
        assert digits.x.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
        assert digits.x.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)

    def test_shapes(self, data_root, digits):
        raw = mnist(data_root, shape="channel", scale=False)
        assert (raw.x.shape, raw.x.dtype) == ((60_000, 1, 28, 28), np.uint8)
        assert np.allclose(raw.x[7].ravel() / 255, digits.x[7])
        with pytest.raises(PlanError, match="shape='round'"):
            mnist(data_root, shape="round")

    def test_natural_clients(self, digits):
        clients = digits.clients(holdout=0.2)
        assert len(clients) == 539
        assert clients.schema().classes.tolist() == list(range(10))
        assert sum(len(c.data) + len(c.holdout) for c in clients) == 60_000


def test_fashion_mnist(data_root):
    data = fashion_mnist(data_root, shape="image")
    assert data.x.shape == (60_000, 28, 28)
    assert np.bincount(data.y).tolist() == [6000] * 10
    assert np.bincount(data.y_test).tolist() == [1000] * 10
    assert data.keys is None
    with pytest.raises(DataError, match="'fashion_mnist' has no natural clients: give a partition"):
        data.clients()
    assert len(data.clients([np.arange(10), np.arange(10, 30)])) == 2


@pytest.fixture(scope="module")
def raw(data_root):
    return heart(data_root, target="severity", impute=None, one_hot=False, scale=False, indicators=False)


class TestHeart:
    # Published by hospital: rows, missing cells ("?"), severity 0 to 4, rows that FLamby keeps.
    PUBLISHED = {  # noqa: RUF012 (read only)
        "cleveland": (303, 6, [164, 55, 36, 35, 13], 303),
        "hungarian": (294, 782, [188, 106, 0, 0, 0], 261),
        "switzerland": (123, 273, [8, 48, 32, 30, 5], 46),
        "va": (200, 698, [51, 56, 41, 42, 10], 130),
    }

    @pytest.mark.parametrize("hospital", PUBLISHED)
    def test_published_counts(self, data_root, raw, hospital):
        rows, missing, severity, kept = self.PUBLISHED[hospital]
        at = raw.keys == hospital
        text = (data_root / "heart-disease" / f"processed.{hospital}.data").read_text()
        cells = [line.split(",") for line in text.split()]
        zeros = sum(float(row[column]) == 0 for row in cells for column in (3, 4) if row[column] != "?")
        assert at.sum() == rows
        assert np.isnan(raw.x[at]).sum() == missing + zeros
        assert np.bincount(raw.y[at], minlength=5).tolist() == severity
        assert (heart(data_root, rows="complete").keys == hospital).sum() == kept

    def test_zero_cholesterol_was_not_measured(self, raw):
        chol = one_column(raw, "chol")
        assert np.isnan(chol[raw.keys == "switzerland"]).all()
        assert np.nanmin(chol) > 50
        assert np.nanmin(one_column(raw, "trestbps")) > 50

    def test_ready_to_learn_from(self, data_root):
        data = heart(data_root)
        assert np.isfinite(data.x).all()
        assert data.x.shape == (920, len(data.features)) == (920, 9 + 4 + 3 + 3 + 3 + 10)
        assert sorted(set(data.y)) == [0, 1]
        assert np.allclose(data.x[:, :1].mean(), 0)
        codes = [one_column(data, f"thal={code}") for code in (3, 6, 7)]
        assert (sum(codes) == 1).all()
        clients = data.clients(holdout=0.2)
        assert list(clients.ids) == list(self.PUBLISHED)

    def test_own_and_common_medians(self, data_root, raw):
        own = heart(data_root, one_hot=False, scale=False)
        common = heart(data_root, one_hot=False, scale=False, impute="global")
        hungarian = (raw.keys == "hungarian") & np.isnan(one_column(raw, "chol"))
        measured = one_column(raw, "chol")
        assert set(one_column(own, "chol")[hungarian]) == {np.nanmedian(measured[raw.keys == "hungarian"])}
        assert set(one_column(common, "chol")[hungarian]) == {np.nanmedian(measured)}
        # Switzerland knows no cholesterol at all, so it has to be told.
        assert set(one_column(own, "chol")[raw.keys == "switzerland"]) == {np.nanmedian(measured)}
        assert np.array_equal(one_column(own, "chol missing"), np.isnan(measured))
        assert set(one_column(own, "thal")) == {3, 6, 7}

    def test_missing_is_refused_by_clients(self, raw):
        with pytest.raises(DataError, match=r"client 'cleveland': x holds NaN in column 12 at row 87 .*impute"):
            raw.clients()

    @pytest.mark.parametrize(
        "options", [{"target": "age"}, {"rows": "some"}, {"impute": "mean"}, {"impute": None}], ids=str
    )
    def test_options(self, data_root, options):
        with pytest.raises(PlanError, match=f"{next(iter(options))}="):
            heart(data_root, **options)


class TestParkinsons:
    def test_people(self, data_root):
        data = parkinsons(data_root, scale=False)
        people = Counter(data.keys.tolist())
        assert (len(people), *min_median_max(people.values())) == (42, 101, 141, 168)
        assert data.x.shape == (5875, 19)
        assert data.features[:3] == ("age", "sex", "test_time")
        assert not {"motor_UPDRS", "total_UPDRS", "subject#"} & set(data.features)
        assert data.x[0, :3].tolist() == [72, 0, 5.6431]

    def test_targets(self, data_root):
        both = parkinsons(data_root, target="both")
        assert (both.y.min(axis=0).round(2).tolist(), both.y.max(axis=0).round(2).tolist()) == (
            [5.04, 7.0],
            [39.51, 54.99],
        )
        assert np.array_equal(parkinsons(data_root).y, both.y[:, 0])
        assert np.array_equal(parkinsons(data_root, target="total_UPDRS").y, both.y[:, 1])
        assert np.allclose(both.x.mean(axis=0), 0)
        assert np.allclose(both.x.std(axis=0), 1)
        with pytest.raises(PlanError, match="target='age'"):
            parkinsons(data_root, target="age")


@pytest.fixture(scope="module")
def people(data_root):
    return adult(data_root)


class TestAdult:
    def test_labels(self, people):
        assert np.bincount(people.y).tolist() == [24_720, 7_841]
        assert np.bincount(people.y_test).tolist() == [12_435, 3_846]

    def test_occupations(self, data_root, people):
        jobs = Counter(people.keys.tolist())
        unknown = jobs.pop("?")
        assert (len(jobs), min(jobs.values()), max(jobs.values())) == (14, 9, 4140)
        assert unknown == 1843
        assert len(set(adult(data_root, key="workclass", missing="drop").keys)) == 7
        assert len(set(adult(data_root, key="workclass").keys) - {"?"}) == 8

    def test_missing_rows(self, data_root, people):
        complete = adult(data_root, missing="drop", one_hot=False, scale=False)
        assert len(people) - len(complete) == 2399
        assert complete.x.shape[1] == 14
        assert not any(name.endswith("=?") for name in complete.features)

    def test_against_pandas(self, data_root, people):
        pandas = pytest.importorskip("pandas")
        with gzip.open(data_root / "adult" / "adult.test.gz", "rt") as file:
            table = pandas.read_csv(file, header=None, skiprows=1, skipinitialspace=True)
        column = people.x_test[:, people.features.index("sex=Female")]
        assert np.array_equal(column == 1, (table[9] == "Female").to_numpy())
        raw = adult(data_root, scale=False)
        assert np.array_equal(raw.x_test[:, raw.features.index("age")], table[0].to_numpy())

    def test_ready_to_learn_from(self, people):
        assert people.x.shape == (32_561, len(people.features))
        assert people.x_test.shape == (16_281, len(people.features))
        countries = [place for place, name in enumerate(people.features) if name.startswith("native-country=")]
        assert len(countries) == 42
        assert (people.x[:, countries].sum(axis=1) == 1).all()
        assert one_column(people, "age").mean() == pytest.approx(0, abs=1e-9)
        # The test part is scaled by the training part's mean, so its own is not 0.
        assert 0 < abs(people.x_test[:, people.features.index("age")].mean()) < 0.1

    @pytest.mark.parametrize("options", [{"key": "sex"}, {"missing": "impute"}], ids=str)
    def test_options(self, data_root, options):
        with pytest.raises(PlanError, match=f"{next(iter(options))}="):
            adult(data_root, **options)


class TestShakespeare:
    def test_speakers(self, data_root):
        text = (data_root / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
        blocks = [block.strip("\n").partition(":\n") for block in text.strip().split("\n\n")]
        lengths = Counter()
        for name, _, words in blocks:
            lengths[name.removesuffix(":")] += len(words)
        said, lengths = speeches(text), lengths.values()
        assert len(blocks) == 7222
        assert len(said) == len(lengths) == 309
        assert sum(map(len, said.values())) == sum(lengths) + 7222 - 309, "a line break between two speeches"
        assert sum(length >= 2000 for length in lengths) == 99
        assert min_median_max(lengths) == (0, 806, 37_405)

    def test_windows_read_as_the_text(self, data_root):
        data = shakespeare(data_root, length=40, target="next", step=7, test=0)
        text = (data_root / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
        said = speeches(text)["First Citizen"]
        assert len(data.classes) == 65
        letters = np.array(data.classes)
        rows = np.flatnonzero(data.keys == "First Citizen")
        assert len(rows) == (len(said) - 41) // 7 + 1
        for number in (0, 1, 50):
            assert "".join(letters[data.x[rows[number]]]) == said[7 * number : 7 * number + 40]
            assert letters[data.y[rows[number]]] == said[7 * number + 40]
        assert data.x_test is None

    def test_sequences_are_shifted_by_one(self, data_root):
        data = shakespeare(data_root, target="sequence")
        assert data.x.shape == data.y.shape == (len(data), 80)
        assert np.array_equal(data.x[:, 1:], data.y[:, :-1])
        assert data.x.dtype == data.y.dtype == np.int64
        assert (np.diff(np.unique(data.keys, return_inverse=True)[1]) >= 0).all()

    def test_the_test_part_is_the_end_of_what_is_said(self, data_root):
        data = shakespeare(data_root, step=1, length=20)
        whole = shakespeare(data_root, step=1, length=20, test=0)
        speaker = "Second Citizen"
        x, test = (a[k == speaker] for a, k in ((data.x, data.keys), (data.x_test, data.keys_test)))
        all_of_it = whole.x[whole.keys == speaker]
        assert np.array_equal(all_of_it[: len(x)], x)
        assert np.array_equal(all_of_it[-len(test) :], test)
        # The 20 windows that would reach over the cut belong to neither part.
        assert len(all_of_it) == len(x) + len(test) + 20

    @pytest.mark.parametrize(
        "options", [{"length": 0}, {"step": 0}, {"test": 1}, {"test": -0.1}, {"target": "word"}], ids=str
    )
    def test_options(self, data_root, options):
        with pytest.raises(PlanError, match=f"{next(iter(options))}="):
            shakespeare(data_root, **options)

    def test_too_long(self, data_root):
        with pytest.raises(DataError, match="no speaker says length=100000"):
            shakespeare(data_root, length=100_000)
