"""Clients from arrays and by key: what they hold, and every mistake that is refused."""

import pickle

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.core.errors import DataError, PlanError
from insitu.core.types import Schema
from insitu.data import Clients
from insitu.data.partition import dirichlet

X = np.arange(20.0).reshape(10, 2)
Y = np.arange(10) % 3
PARTS = [[0, 1, 2, 3], [9, 5], [4, 6, 7, 8]]


def test_a_client_has_its_rows():
    clients = Clients.from_arrays(X, Y, PARTS)
    assert (len(clients), list(clients.ids)) == (3, ["0", "1", "2"])
    client = clients.at(1)
    assert client.id == clients.id_at(1) == "1"
    assert client.holdout is None
    assert client.data.rows.tolist() == [9, 5]
    assert np.array_equal(client.data.x, X[[9, 5]])
    assert np.array_equal(client.data.y, Y[[9, 5]])
    assert [clients.size_at(place) for place in range(3)] == [4, 2, 4]
    assert not clients.has_holdout()


def test_one_client_by_default():
    clients = Clients.from_arrays(X)
    assert len(clients) == 1
    assert clients.at(0).data.x.shape == (10, 2)
    assert clients.at(0).data.y is None


def test_no_copy_where_none_is_needed():
    clients = Clients.from_arrays(X, Y, PARTS)
    assert np.shares_memory(clients.at(0).data.x, X)
    assert np.shares_memory(clients.at(0).data.y, Y)
    assert not np.shares_memory(clients.at(1).data.x, X)
    assert np.shares_memory(Clients.from_arrays(X, Y).pooled().x, X)


def test_ways_to_a_client():
    clients = Clients.from_arrays(X, Y, PARTS, ids=["a", "b", "c"])
    assert [client.id for client in clients] == ["a", "b", "c"]
    assert clients["b"].id == clients[1].id == "b"
    assert clients.place_of("c") == 2
    assert "b" in clients
    assert "z" not in clients
    assert "3 clients, 10 examples, x float64 [2], y int64 of 3 classes" in repr(clients)


def test_strangers():
    clients = Clients.from_arrays(X, Y, PARTS, ids=["cleveland", "hungarian", "va"])
    with pytest.raises(DataError, match=r"no client 'clevland': did you mean 'cleveland'\?"):
        clients["clevland"]
    for place in (3, -1):
        with pytest.raises(IndexError, match=f"place={place}: there are the places 0 to 2"):
            clients.at(place)
    for method in (clients.at, clients.size_at, clients.id_at):
        with pytest.raises(TypeError, match="expected a whole number"):
            method(1.0)


class TestKinds:
    def check(self, x, y=None):
        client = Clients.from_arrays(x, y, PARTS).at(1)
        assert isinstance(client.data.x, np.ndarray)
        assert np.array_equal(client.data.x, X[[9, 5]])
        return client.data

    def test_lists(self):
        self.check(X.tolist(), Y.tolist())

    def test_frames(self):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(X, columns=["a", "b"])
        data = self.check(frame, pandas.Series(["no", "yes"] * 5))
        assert data.y.tolist() == ["yes", "yes"]
        assert data.y.dtype.kind == "U"
        self.check(frame.astype({"a": "Int64"}))
        self.check(frame.astype({"a": object}))

    def test_frame_of_text(self):
        pandas = pytest.importorskip("pandas")
        with pytest.raises(DataError, match=r"column 'sex', holds 'm', which is not a number: encode it"):
            Clients.from_arrays(pandas.DataFrame({"age": [1, 2], "sex": ["m", "f"]}))

    def test_tensors(self):
        torch = pytest.importorskip("torch")
        self.check(torch.as_tensor(X), torch.as_tensor(Y))

    def test_dicts(self):
        clients = Clients.from_arrays({"text": X, "image": X[:, None]}, Y, PARTS, holdout=0.5)
        assert clients.at(0).data.x["image"].shape == (2, 1, 2)
        assert clients.at(0).holdout.x["text"].shape == (2, 2)
        assert clients.schema().features is None
        assert "x {text, image}" in repr(clients)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (np.array(["a", "b"]), "holds 'a', which is not a number: encode it"),
            (np.array([1, "b"], object), "holds 'b'"),
            (np.array(["2026-01-01"], "datetime64[D]"), "not a number"),
            ([[1, 2], [3]], "rows have unequal lengths"),
            (5.0, "expected an array"),
            ({}, "empty dict"),
            ({"a": X, "b": X[:9]}, r"x\['a'\] has 10 examples and x\['b'\] has 9"),
            (np.zeros((0, 3)), "no examples"),
        ],
    )
    def test_not_numbers(self, x, message):
        with pytest.raises(DataError, match=message):
            Clients.from_arrays(x)

    def test_sparse(self):
        sparse = pytest.importorskip("scipy.sparse")
        with pytest.raises(DataError, match="toarray"):
            Clients.from_arrays(sparse.csr_matrix(X))

    def test_labels_in_a_dict(self):
        with pytest.raises(DataError, match="y is a dict"):
            Clients.from_arrays(X, {"a": Y})


class TestMistakes:
    def refuse(self, message, x=X, y=Y, parts=PARTS, **options):
        with pytest.raises(DataError, match=message):
            Clients.from_arrays(x, y, parts, **options)

    def test_lengths(self):
        self.refuse("x has 10 examples and y has 9", y=Y[:9])

    def test_empty_part(self):
        self.refuse("client 'b' has no examples", parts=[[0], []], ids=["a", "b"])
        self.refuse("parts is empty", parts=[])

    def test_rows_out_of_range(self):
        self.refuse("client '1': its part holds row 10, and there are rows 0 to 9", parts=[[0], [10]])
        self.refuse("client '1': its part holds row -1", parts=[[0], [-1]])

    def test_rows_that_are_none(self):
        self.refuse(r"client '0': its part is float64 of shape \(1,\)", parts=[[0.5]])
        self.refuse(r"shape \(1, 2\)", parts=[[[0, 1]]])

    def test_row_in_two_parts(self):
        self.refuse(r"row 3 belongs to clients '0' and '1' \(2 such rows", parts=[[3, 4], [4, 3]])
        self.refuse("row 3 belongs to client '0' twice", parts=[[3, 3], [1]])

    def test_ids(self):
        self.refuse("ids has 2 ids and parts has 3", ids=["a", "b"])
        self.refuse("client id 'a' occurs twice", ids=["a", "b", "a"])
        self.refuse("client id '1' occurs twice", ids=[1, "1", 2])
        self.refuse("expected a sequence", ids={"a", "b", "c"})

    @pytest.mark.parametrize(("value", "text"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
    def test_not_finite(self, value, text):
        x, y = X.copy(), Y.astype(float)
        x[7, 1] = x[8, 0] = value
        self.refuse(rf"client '2': x holds {text} in column 1 at row 7 \(2 such rows in all\).*impute", x=x)
        y[5] = value
        self.refuse(f"client '1': y holds {text} at row 5", y=y)
        self.refuse(r"client '1': x/b holds .* in element \(0, 0\)", x={"a": X, "b": y[:, None, None] + 0})

    def test_missing_objects(self):
        self.refuse("client '1': y holds NaN at row 9", y=["a"] * 9 + [None])
        self.refuse("client '1': x holds NaN at row 9", x=[1.0] * 9 + [None])

    def test_column_names(self):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(X, columns=["age", "chol"])
        frame.loc[4, "chol"] = None
        self.refuse("client 'va': x holds NaN in column 'chol' at row 4", x=frame, ids=["a", "b", "va"])
        self.refuse("column 'chol' at row 4", x=frame.astype("Float64"), ids=["a", "b", "va"])

    def test_far_into_a_large_array(self):
        x = np.zeros((3_000_000, 2), np.float32)
        x[2_999_999, 0] = np.nan
        self.refuse("row 2999999", x=x, y=None, parts=None)

    def test_nobodys_rows_may_be_missing(self):
        x = X.copy()
        x[4] = np.nan
        assert len(Clients.from_arrays(x, Y, [[0, 1], [2, 3]])) == 2

    @pytest.mark.parametrize("holdout", [-0.1, 1, 1.5, np.nan, "0.2", None])
    def test_holdout(self, holdout):
        with pytest.raises(PlanError, match="holdout="):
            Clients.from_arrays(X, Y, PARTS, holdout=holdout)

    def test_seed(self):
        with pytest.raises(PlanError, match="seed="):
            Clients.from_arrays(X, Y, PARTS, holdout=0.2, seed=1.5)

    def test_labels_beyond_the_schema(self):
        self.refuse(r"y holds .*2.* at row 2, and the schema has the classes", schema=Schema((2,), np.arange(2)))


class TestHoldout:
    @settings(deadline=None, max_examples=50)
    @given(n=st.integers(1, 60), fraction=st.floats(0, 0.99), seed=st.integers(0, 9))
    def test_splits_every_client(self, n, fraction, seed):
        clients = Clients.from_arrays(np.arange(n), None, None, holdout=fraction, seed=seed)
        client = clients.at(0)
        held = [] if client.holdout is None else client.holdout.rows.tolist()
        assert sorted(client.data.rows.tolist() + held) == list(range(n))
        assert len(client.data) == clients.size_at(0) >= 1
        assert clients.has_holdout() == (client.holdout is not None) == (fraction > 0 and n > 1)
        if n > 1 and fraction:
            assert abs(len(held) - fraction * n) <= 1

    def test_depends_on_seed_and_id_alone(self):
        x = np.arange(60)

        def held(name, seed, place=0):
            parts = [list(range(20)), list(range(20, 40)), list(range(40, 60))]
            ids = ["p", "q", "r"]
            ids[place] = name
            clients = Clients.from_arrays(x, None, parts, ids=ids, holdout=0.25, seed=seed)
            return (clients[name].holdout.rows - 20 * place).tolist()

        assert held("a", 1) == held("a", 1, place=2)
        assert held("a", 1) != held("b", 1)
        assert held("a", 1) != held("a", 2)
        assert len(held("a", 1)) == 5

    def test_one_example_is_learnt_from(self):
        clients = Clients.from_arrays(X, Y, [[0], [1, 2]], holdout=0.9)
        assert clients.at(0).holdout is None
        assert clients.size_at(0) == clients.size_at(1) == 1
        assert len(clients.at(1).holdout) == 1
        assert clients.has_holdout()

    def test_pooled(self):
        clients = Clients.from_arrays(X, Y, PARTS, holdout=0.3)
        learnt, held = clients.pooled(), clients.pooled(holdout=True)
        assert sorted([*learnt.rows, *held.rows]) == list(range(10))
        assert (np.diff(learnt.rows) > 0).all()
        assert np.array_equal(learnt.x, X[learnt.rows])
        with pytest.raises(DataError, match="no client holds examples out"):
            Clients.from_arrays(X, Y, PARTS).pooled(holdout=True)


class TestByKey:
    def test_one_client_a_key(self):
        clients = Clients.by_key(X, Y, ["va", "cleveland"] * 5)
        assert list(clients.ids) == ["cleveland", "va"]
        assert clients["va"].data.rows.tolist() == [0, 2, 4, 6, 8]

    def test_numbers_sort_as_numbers(self):
        assert list(Clients.by_key(X, Y, [10, 9] * 5).ids) == ["9", "10"]

    def test_series(self):
        pandas = pytest.importorskip("pandas")
        keys = pandas.Series(["a", "b"] * 5, index=range(100, 110))
        assert list(Clients.by_key(pandas.DataFrame(X), pandas.Series(Y), keys).ids) == ["a", "b"]

    def test_mistakes(self):
        with pytest.raises(DataError, match="x has 10 examples and keys has 9"):
            Clients.by_key(X, Y, range(9))
        with pytest.raises(DataError, match="keys hold None at row 1"):
            Clients.by_key(X, Y, ["a", None] * 5)
        x = X.copy()
        x[3, 0] = np.nan
        with pytest.raises(DataError, match="client 'b': x holds NaN in column 0 at row 3"):
            Clients.by_key(x, Y, ["a", "b"] * 5)


class TestSchema:
    def test_known_of_the_data(self):
        schema = Clients.from_arrays(X, Y, PARTS).schema()
        assert schema.features == (2,)
        assert schema.classes.tolist() == [0, 1, 2]
        assert Clients.from_arrays(X, list("abababacaa"), PARTS).schema().classes.tolist() == ["a", "b", "c"]

    def test_measures_and_none(self):
        assert Clients.from_arrays(X, Y / 3, PARTS).schema().classes is None
        assert Clients.from_arrays(X, None, PARTS).schema().classes is None

    def test_given(self):
        given = Schema((2,), np.arange(5))
        assert Clients.from_arrays(X, Y, PARTS, schema=given).schema() is given


def test_describe_and_plot(tmp_path):
    clients = Clients.from_arrays(X, Y, PARTS, ids=["a", "b", "c"])
    summary = clients.describe()
    assert summary.sizes.tolist() == [4, 2, 4]
    assert summary.table.sum(axis=0).tolist() == [4, 3, 3]
    assert "b" in str(summary)
    assert Clients.from_arrays(X, Y / 3, PARTS).describe().table is None
    assert Clients.from_arrays(X, None, PARTS).describe().table is None
    pytest.importorskip("matplotlib")
    assert clients.plot(tmp_path / "clients.svg").exists()


@pytest.mark.parametrize("way", [pickle, cloudpickle])
def test_travels_to_worker_processes(way):
    clients = Clients.from_arrays(X, Y, PARTS, holdout=0.3, ids=["a", "b", "c"])
    assert clients.place_of("b") == 1
    there = way.loads(way.dumps(clients))
    for one, other in zip(clients, there, strict=True):
        assert one.id == other.id
        assert np.array_equal(one.data.rows, other.data.rows)
        assert np.array_equal(one.holdout.x, other.holdout.x)
    assert there.schema().classes.tolist() == [0, 1, 2]


def test_data_is_not_held_twice():
    import tracemalloc

    x, y = np.zeros((200_000, 16), np.float32), np.arange(200_000) % 10
    parts = dirichlet(y, 100)
    tracemalloc.start()
    clients = Clients.from_arrays(x, y, parts)
    for client in clients:
        assert len(client.data) > 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes
