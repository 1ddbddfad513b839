"""KNN: the answer of one machine that holds all rows, whoever holds them; what cannot be a neighbour is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import Raw
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import insitu
from insitu.algorithms import knn
from insitu.algorithms.knn import KNN, vote
from insitu.core.errors import DataError, PlanError, RoundError
from insitu.core.types import Client, Data
from insitu.data import Clients, load
from insitu.data.partition import iid, shards

IRIS = load("iris")
TRAIN_X, TEST_X, TRAIN_Y, TEST_Y = train_test_split(IRIS.x, IRIS.y, test_size=0.2, random_state=42)


def train(clients, k=3, weights="uniform", **options):
    plan = insitu.Plan(KNN(k=k, weights=weights))
    return insitu.run(plan, clients, rounds=1, store=None, observers=(), **options)


def by_hand(x, y, queries, k):
    """The majority of the k first by (squared distance, row), equal votes to the smaller label: nothing of ours."""
    answers = []
    for query in queries:
        d2 = [sum((a - b) ** 2 for a, b in zip(query, row, strict=True)) for row in x.tolist()]
        labels = [y[row] for row in sorted(range(len(x)), key=lambda row: (d2[row], row))[:k]]
        answers.append(max(sorted(set(labels)), key=labels.count))
    return answers


# ---------------------------------------------------------------- the same as on one machine


@pytest.mark.parametrize(
    "parts", [iid(120, 6), shards(TRAIN_Y, 5), [[i] for i in range(120)]], ids=["iid", "shards", "1"]
)
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_it_is_scikit_learns_answer_on_iris(parts, weights):
    result = train(Clients.from_arrays(TRAIN_X, TRAIN_Y, parts), 3, weights)
    central = KNeighborsClassifier(3, weights=weights).fit(TRAIN_X, TRAIN_Y)
    np.testing.assert_array_equal(result.predict(TEST_X), central.predict(TEST_X))


@pytest.mark.parametrize("k", [1, 4, 7])
def test_distance_weights_are_scikit_learns(k):
    rng = np.random.default_rng(k)
    x, y, queries = rng.normal(size=(90, 3)), rng.integers(0, 4, 90), rng.normal(size=(50, 3))
    queries[:10] = x[:10]  # at distance zero, only those at zero vote
    result = train(Clients.from_arrays(x, y, iid(90, 7)), k, "distance")
    central = KNeighborsClassifier(k, weights="distance").fit(x, y)
    np.testing.assert_array_equal(result.predict(queries), central.predict(queries))


points = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=4, max_size=24)


@given(x=points, seed=st.integers(0, 999), clients=st.integers(1, 4), k=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_ties_go_to_the_smaller_row_under_any_partition(x, seed, clients, k):
    x = np.array(x, dtype=float)  # a small grid: most distances are tied
    rng = np.random.default_rng(seed)
    y, queries = rng.integers(0, 3, len(x)), rng.integers(0, 4, (5, 2)).astype(float)
    owner = rng.permutation(np.arange(len(x)) % clients)
    result = train(Clients.by_key(x, y, owner), k)
    np.testing.assert_array_equal(result.predict(queries), by_hand(x, y, queries.tolist(), k))


def test_rows_without_numbers_are_counted_client_by_client():
    clients = Clients.lazy(["a", "b"], lambda name: (np.zeros((2, 1)), np.array([5, 7] if name == "a" else [1, 1])))
    # By (row, client): a's 5, b's 1, a's 7, b's 1.
    assert train(clients, 1).predict([[0.0]]).tolist() == [5]
    assert train(clients, 2).predict([[0.0]]).tolist() == [1]


def test_many_queries_are_taken_in_pieces(monkeypatch):
    clients = Clients.from_arrays(TRAIN_X, TRAIN_Y, iid(120, 4))
    whole = train(clients).predict(IRIS.x)
    monkeypatch.setattr(knn, "CHUNK", 1)
    np.testing.assert_array_equal(train(clients).predict(IRIS.x), whole)


def test_images_are_points_and_no_queries_get_no_answers():
    x = np.random.default_rng(0).normal(size=(20, 3, 4))
    result = train(Clients.from_arrays(x, np.arange(20) % 2, iid(20, 3)))
    assert result.predict(x[:5]).shape == (5,)
    assert result.predict(x[:0]).shape == (0,)


def test_labels_come_back_as_they_are():
    clients = Clients.from_arrays(TRAIN_X, TRAIN_Y * 2.5 - 1, iid(120, 4))
    assert set(train(clients).predict(TEST_X)) <= {-1.0, 1.5, 4.0}


# ---------------------------------------------------------------- votes


def test_equal_votes_go_to_the_smaller_label():
    np.testing.assert_array_equal(vote(np.array([[9, 2], [3, 3]]), None), [2, 3])


def test_votes_by_distance():
    label = np.array([[1, 2, 2], [1, 2, 2], [2, 1, 1]])
    distance = np.array([[0.1, 1.0, 1.0], [0.6, 1.0, 1.0], [0.0, 1e-9, 1e-9]])
    np.testing.assert_array_equal(vote(label, distance), [1, 2, 2])


# ---------------------------------------------------------------- evaluation


def test_evaluation_asks_the_clients():
    result = train(Clients.from_arrays(TRAIN_X, TRAIN_Y, iid(120, 4)), evaluate=(TEST_X, TEST_Y))
    assert result.history[-1]["accuracy"] == np.mean(result.predict(TEST_X) == TEST_Y) == 1.0
    assert result.history[-1]["clients"] == 4


def test_the_state_counts_examples_and_collects_labels():
    result = train(Clients.from_arrays(TRAIN_X, TRAIN_Y, shards(TRAIN_Y, 5)))
    np.testing.assert_array_equal(result.params["classes"], [0, 1, 2])
    assert result.params["examples"].tolist() == [24.0] * 5


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("options", "match"), [({"k": 0}, "k=0"), ({"weights": "near"}, "weights='near'")])
def test_bad_arguments(options, match):
    with pytest.raises(PlanError, match=match):
        KNN(**options)


def test_more_neighbours_than_examples():
    with pytest.raises(DataError, match="k=7 neighbours among 6 examples: use a smaller k"):
        train(Clients.from_arrays(TRAIN_X[:6], TRAIN_Y[:6], iid(6, 2)), 7)


def test_a_cohort_may_hold_fewer_than_k():
    plan = insitu.Plan(KNN(k=5), cohort=insitu.Uniform(1))
    clients = Clients.from_arrays(TRAIN_X[:6], TRAIN_Y[:6], iid(6, 3))
    result = insitu.run(plan, clients, rounds=1, store=None, observers=())
    assert result.predict(TEST_X).tolist() == by_hand(TRAIN_X[:6], TRAIN_Y[:6], TEST_X.tolist(), 5)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (np.array(["a", "b", "a"]), "client '0': nearest neighbours need labels that are numbers, not <U1"),
        (None, "client '0': nearest neighbours need labels that are numbers, not None"),
        (np.zeros((3, 2)), r"client '0' has y of shape \(3, 2\)"),
    ],
    ids=["text", "none", "two columns"],
)
def test_labels_that_cannot_vote(y, match):
    with pytest.raises(RoundError, match=match):
        train(Clients.from_arrays(np.ones((3, 2)), y), 1)


def test_columns_by_name_are_not_taken_for_points():
    with pytest.raises(RoundError, match=r"client '0' has x as columns \{age\}"):
        train(Clients.from_arrays({"age": np.ones(3)}, np.arange(3)), 1)


def test_clients_of_different_widths():
    clients = Raw(Client("a", Data(np.ones((3, 2)), np.arange(3))), Client("b", Data(np.ones((3, 5)), np.arange(3))))
    with pytest.raises(DataError, match=r"clients disagree on the number of features: \[2, 5\]"):
        train(clients, 1)


@pytest.mark.parametrize(
    ("queries", "match"),
    [
        (np.ones((2, 3)), "queries have 3 features, the clients' examples 4"),
        (np.full((2, 4), np.nan), "the array of queries has NaN or Inf"),
        (np.array([["a"] * 4]), "the array of queries has x of type <U1"),
    ],
    ids=["width", "nan", "text"],
)
def test_queries_that_cannot_be_answered(queries, match):
    result = train(Clients.from_arrays(TRAIN_X, TRAIN_Y, iid(120, 4)))
    with pytest.raises(DataError, match=match):
        result.predict(queries)


def test_training_data_with_nan():
    clients = Clients.lazy(["a"], lambda name: (np.ones((3, 2)), np.arange(3)))
    client = clients.at(0)
    client.data.x[1, 1] = np.nan
    with pytest.raises(DataError, match="client 'a' has NaN or Inf in x"):
        knn._checked(client)


def test_a_client_cannot_score_itself():
    clients = Clients.from_arrays(TRAIN_X, TRAIN_Y, iid(120, 4), holdout=0.2)
    assert "clients_accuracy" not in train(clients).history[-1]
    task = insitu.core.types.Task("run", 1, 1, "evaluate", "0", {}, 0)
    with pytest.raises(PlanError, match="evaluate with a central test set"):
        KNN(k=1).local(task, clients.at(0), None, None)


def test_what_is_told_has_no_features_in_it():
    data = Data(TRAIN_X, TRAIN_Y, np.arange(120))
    found = knn.nearest(TEST_X, data, 3)
    assert set(found) == {"distance", "row", "label"}
    assert found["distance"].shape == (30, 3)
