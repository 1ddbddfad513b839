"""Lazy clients: nothing is loaded or made before it is asked for, and what is loaded is checked."""

import tracemalloc
from functools import lru_cache

import cloudpickle
import numpy as np
import pytest

from insitu.core.errors import DataError, PlanError
from insitu.core.types import Client, Data, Schema
from insitu.data import Clients

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2


def give(*_):
    return X, Y


def test_a_million_take_no_memory():
    asked = []

    def load(number):
        asked.append(number)
        return X + number, Y

    tracemalloc.start()
    clients = Clients.lazy(range(1_000_000), load, holdout=0.5)
    assert len(clients) == len(clients.ids) == 1_000_000
    assert clients.id_at(999_999) == clients.ids[-1] == "999999"
    assert clients.place_of("123456") == 123_456
    assert "1000000" not in clients
    assert "007" not in clients
    assert clients.size_at(5) is None
    assert clients.has_holdout()
    assert repr(clients) == "Clients(1,000,000 clients, loaded when asked for, holdout 0.5)"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert asked == []
    client = clients["777"]
    assert client.id == "777"
    assert (client.data.x.max(), client.holdout.x.shape) == (788.0, (3, 2))
    assert asked == [777]


def test_load_gets_what_was_given():
    pandas = pytest.importorskip("pandas")
    for ids in (["a", "b"], ("a", "b"), np.array(["a", "b"]), pandas.Series(["a", "b"], index=[7, 8])):
        asked = []
        clients = Clients.lazy(ids, lambda key, asked=asked: (asked.append(key), give())[1])
        assert clients.at(1).id == "b"
        assert asked == ["b"]
    assert Clients.lazy([(1, 2)], give).id_at(0) == "(1, 2)"


@pytest.mark.parametrize("answer", [(X, Y), (X, None), Data(X, Y), Client("0", Data(X, Y), Data(X, Y))])
def test_what_load_may_return(answer):
    client = Clients.lazy(["0"], lambda _: answer).at(0)
    assert (client.id, len(client.data)) == ("0", 6)
    assert (client.holdout is not None) == isinstance(answer, Client)


def test_frames_and_tensors():
    torch = pytest.importorskip("torch")
    data = Clients.lazy([0], lambda _: (torch.as_tensor(X), torch.as_tensor(Y))).at(0).data
    assert isinstance(data.x, np.ndarray)
    assert isinstance(data.y, np.ndarray)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "load returned NoneType: expected"),
        (X, "load returned ndarray"),
        ((X, Y, Y), "load returned tuple"),
        ((X, Y[:5]), "x has 6 examples and y has 5"),
        ((X[:0], Y[:0]), "no examples"),
        ((np.where(X == 5, np.nan, X), Y), "x holds NaN in column 1 at row 2"),
        ((X, np.where(Y == 1, np.inf, 0)), "y holds inf at row 1"),
        ((np.array(["a"]), None), "not a number"),
        (Client("other", Data(X)), "load returned the client 'other'"),
        (Data(X, Y, np.arange(3)), "6 examples and 3 row numbers"),
    ],
)
def test_what_load_returns_is_checked(answer, message):
    clients = Clients.lazy(["va"], lambda _: answer)
    with pytest.raises(DataError, match=f"client 'va': .*{message}"):
        clients.at(0)


def test_errors_of_load_name_the_client():
    def load(name):
        raise FileNotFoundError(f"{name}.npz")

    with pytest.raises(FileNotFoundError) as caught:
        Clients.lazy(["va"], load).at(0)
    assert caught.value.__notes__ == ["while loading client 'va'"]


class TestSizes:
    def test_are_of_training_examples(self):
        clients = Clients.lazy(range(2), give, sizes=[6, 6], holdout=0.5)
        assert clients.size_at(0) == len(clients.at(0).data) == 3

    def test_must_be_true(self):
        with pytest.raises(DataError, match="client '1': load returned 6 examples and sizes says 5"):
            Clients.lazy(range(2), give, sizes=np.array([6, 5])).at(1)

    def test_must_fit(self):
        with pytest.raises(DataError, match="sizes has 1 numbers and ids has 2"):
            Clients.lazy(range(2), give, sizes=[6])
        for size in (0, 1.5, True):
            with pytest.raises(DataError, match="client '1': its size is"):
                Clients.lazy(range(2), give, sizes=[6, size]).size_at(1)


class TestMistakes:
    def test_ids(self):
        with pytest.raises(DataError, match="client id 'a' occurs twice"):
            Clients.lazy(["a", "a"], give)
        for ids in (iter("ab"), {"a": 1}, "ab", 5):
            with pytest.raises(DataError, match="expected a sequence"):
                Clients.lazy(ids, give)
        with pytest.raises(DataError, match="ids is empty"):
            Clients.lazy([], give)

    def test_load_and_schema(self):
        with pytest.raises(PlanError, match="load="):
            Clients.lazy(["a"], "file.npz")
        with pytest.raises(PlanError, match="schema="):
            Clients.lazy(["a"], give, schema=(2,))

    def test_two_holdouts(self):
        clients = Clients.lazy(["0"], lambda _: Client("0", Data(X), Data(X)), holdout=0.5)
        with pytest.raises(DataError, match=r"asks for another: leave one of them out"):
            clients.at(0)


def test_schema_is_given_or_of_the_first_client():
    asked = []
    clients = Clients.lazy(range(9), lambda i: (asked.append(i), give())[1])
    assert clients.schema() == clients.schema() == Schema((2,), None)
    assert not clients.has_holdout()
    assert asked == [0]
    given = Schema((2,), np.arange(2))
    assert Clients.lazy(range(9), give, schema=given).schema() is given
    assert Clients.lazy(["0"], lambda _: Client("0", Data(X), Data(X))).has_holdout()


def test_pooled_and_described():
    clients = Clients.lazy(range(3), lambda i: ({"a": X + i}, Y), holdout=0.34)
    assert clients.pooled().x["a"].shape == (12, 2)
    assert clients.pooled(holdout=True).y.shape == (6,)
    assert clients.describe().sizes.tolist() == [4, 4, 4]
    assert clients.pooled().rows is None


def test_travels_to_worker_processes():
    offset = 3.0
    clients = Clients.lazy(range(1_000_000), lambda i: (X + i + offset, Y), holdout=0.5, seed=4)
    there = cloudpickle.loads(cloudpickle.dumps(clients))
    assert np.array_equal(there.at(7).data.x, clients.at(7).data.x)
    assert len(cloudpickle.dumps(clients)) < 10_000


def test_a_cache_is_the_callers():
    loads = lru_cache(maxsize=2)(give)
    clients = Clients.lazy(range(2), loads)
    assert np.shares_memory(clients.at(0).data.x, clients.at(0).data.x)
    assert loads.cache_info().hits == 1
