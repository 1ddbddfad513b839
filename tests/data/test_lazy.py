"""Lazy clients: nothing is loaded or made before it is asked for, and what is loaded is checked."""

import threading
import time
import tracemalloc
from functools import lru_cache

import cloudpickle
import numpy as np
import pytest

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core.errors import DataError, PlanError
from insitu.core.types import Client, Data, Schema
from insitu.data import Clients
from insitu.data.deadline import MOST

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


class TestForm:
    """Nobody may return something else than the first client, once that one is known."""

    @pytest.mark.parametrize(
        ("odd", "message"),
        [
            ((X[:, :1], Y), r"x float64 \[1\], y whole numbers \[\], and for the first client, '0', x float64 \[2\]"),
            ((X.astype(np.float32), Y), r"x float32 \[2\]"),
            (({"a": X}, Y), r"x/a float64 \[2\]"),
            ((X, None), r"load returned x float64 \[2\], and"),
            ((X, Y + 0.5), r"y fractions \[\]"),
            ((X, Y.astype(str)), r"y text \[\]"),
            ((X, Y[:, None]), r"y whole numbers \[1\]"),
        ],
    )
    def test_is_that_of_the_first(self, odd, message):
        clients = Clients.lazy(range(3), lambda i: odd if i == 1 else (X, Y))
        clients.at(0)
        there = cloudpickle.loads(cloudpickle.dumps(clients))
        for same in (clients, there):
            with pytest.raises(DataError, match=f"client '1': .*{message}"):
                same.at(1)
            assert same.at(2).id == "2"

    def test_may_differ_in_what_is_no_form(self):
        answers = [(X, np.array(list("aabbab"))), (X[:2], np.array(["longer", "a"]))]
        assert [len(client.data) for client in Clients.lazy(range(2), lambda i: answers[i])] == [6, 2]

    def test_of_a_schema(self):
        clients = Clients.lazy(range(3), lambda _: (X, Y), schema=Schema((3,), None))
        with pytest.raises(DataError, match=r"client '2': an example's x has shape \[2\], and the schema says \[3\]"):
            clients.at(2)


class TestTimeout:
    def test_the_late_one_is_named_and_the_others_go_on(self):
        released = threading.Event()

        def load(number):
            if number == 1:
                released.wait(30)
            return X, Y

        clients = Clients.lazy(range(3), load, timeout=0.2)
        with pytest.raises(TimeoutError, match=r"longer than timeout=0\.2 s") as caught:
            clients.at(1)
        assert caught.value.__notes__ == ["while loading client '1'"]
        assert clients.at(2).id == "2"
        released.set()

    def test_one_thread_is_used_again(self):
        seen = []
        clients = Clients.lazy(range(5), lambda i: (seen.append(threading.get_ident()), give())[1], timeout=30)
        assert len(list(clients)) == 5
        assert len(set(seen)) == 1
        assert seen[0] != threading.get_ident()

    def test_what_is_left_behind_is_bounded(self):
        released, begun = threading.Event(), []
        clients = Clients.lazy(range(99), lambda i: (begun.append(i), released.wait(30), give())[2], timeout=0.02)
        for place in range(MOST):
            with pytest.raises(TimeoutError, match="longer than"):
                clients.at(place)
        with pytest.raises(TimeoutError, match=f"{MOST} loads .* are still at work"):
            clients.at(50)
        assert 50 not in begun
        late = [thread for thread in threading.enumerate() if thread.name == "insitu load" and thread.is_alive()]
        released.set()
        for thread in late:
            thread.join(30)
        assert clients.at(50).id == "50"

    def test_errors_come_through(self):
        def load(_):
            raise FileNotFoundError("gone.npz")

        with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
            Clients.lazy(range(3), load, timeout=30).at(1)

    def test_threads_end_with_the_clients(self):
        clients = Clients.lazy(range(3), give, timeout=30)
        clients.at(0)
        (caller,) = clients._source._deadline._idle
        del clients
        caller.join(30)
        assert not caller.is_alive()

    def test_must_be_positive(self):
        with pytest.raises(PlanError, match="timeout=0"):
            Clients.lazy(range(3), give, timeout=0)

    def test_travels(self):
        clients = Clients.lazy(range(3), give, timeout=30)
        clients.at(0)
        assert cloudpickle.loads(cloudpickle.dumps(clients)).at(2).id == "2"


@pytest.mark.parametrize("engine", ["inline", "vectorized", "processes"])
def test_bad_clients_fail_by_name_and_the_others_go_on(engine):
    torch = pytest.importorskip("torch")
    from insitu.learners.torch import TorchLearner

    def load(number):
        if number == 1:
            raise OSError("the disk is gone")
        if number == 4:
            time.sleep(60)
        answers = {2: (X[:, :1], Y), 3: (X[:0], Y[:0]), 5: (X.astype(np.float32), Y)}
        return answers.get(number, (X + number, Y))

    clients = Clients.lazy(range(8), load, schema=Schema((2,), np.arange(2)), timeout=2)
    failed = {}

    def note(event):
        if type(event).__name__ == "ClientFailed":
            failed[event.client] = event.error

    plan = insitu.Plan(FedAvg(lr=0.01), TorchLearner(torch.nn.Linear(2, 2).double()), block=4)
    result = insitu.run(plan, clients, rounds=1, engine=engine, observers=[note])
    assert (result.history[0]["clients"], result.history[0]["failed"]) == (3, 5)
    assert sorted(failed) == ["1", "2", "3", "4", "5"]
    for client, text in zip("12345", ["disk", "schema says", "no examples", "timeout=2", "float32"], strict=True):
        assert text in failed[client]
