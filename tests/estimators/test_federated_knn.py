"""FederatedKNeighborsClassifier: scikit-learn's answer, and the exact rule where scikit-learn has none."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier

from insitu.core.errors import DataError, PlanError
from insitu.data import load
from insitu.estimators import FederatedKNeighborsClassifier

IRIS = load_iris()
X_TRAIN, X_TEST, Y_TRAIN, Y_TEST = train_test_split(IRIS.data, IRIS.target, test_size=0.2, random_state=42)
NAMES = IRIS.target_names[Y_TRAIN]


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_iris_is_scikit_learns(k, weights):
    ours = FederatedKNeighborsClassifier(k, weights=weights).fit(X_TRAIN, Y_TRAIN)
    central = KNeighborsClassifier(k, weights=weights).fit(X_TRAIN, Y_TRAIN)
    np.testing.assert_array_equal(ours.predict(X_TEST), central.predict(X_TEST))


@pytest.mark.parametrize("k", [1, 3, 4])
def test_iris_by_the_exact_rule(k):
    """The k first by (distance, row), equal votes to the smaller label, in exact arithmetic: iris has one decimal."""
    x, queries = np.rint(X_TRAIN * 10).astype(int), np.rint(X_TEST * 10).astype(int)
    expected = []
    for query in queries:
        d2 = ((x - query) ** 2).sum(axis=1)
        nearest = sorted(range(len(x)), key=lambda row: (d2[row], row))[:k]
        expected.append(np.bincount(Y_TRAIN[nearest]).argmax())
    ours = FederatedKNeighborsClassifier(k).fit(x, Y_TRAIN)
    np.testing.assert_array_equal(ours.predict(queries), expected)


@given(
    owner=st.lists(st.integers(0, 6), min_size=120, max_size=120),
    k=st.integers(1, 9),
    weights=st.sampled_from(["uniform", "distance"]),
)
@settings(max_examples=25, deadline=None)
def test_the_partition_does_not_matter(owner, k, weights):
    apart = FederatedKNeighborsClassifier(k, weights=weights).fit(X_TRAIN, NAMES, groups=owner)
    together = FederatedKNeighborsClassifier(k, weights=weights, clients=1).fit(X_TRAIN, NAMES)
    np.testing.assert_array_equal(apart.predict(X_TEST), together.predict(X_TEST))


def test_labels_of_text_come_back():
    model = FederatedKNeighborsClassifier().fit(X_TRAIN, NAMES)
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert model.score(X_TEST, IRIS.target_names[Y_TEST]) == 1.0


def test_a_group_is_a_client():
    model = FederatedKNeighborsClassifier().fit(X_TRAIN, NAMES, groups=NAMES)
    assert model.history_[-1]["clients"] == 3
    assert list(model.result_.clients.ids) == ["setosa", "versicolor", "virginica"]
    assert model.score(X_TEST, IRIS.target_names[Y_TEST]) == 1.0


def test_heart_disease_at_four_hospitals():
    try:
        heart = load("heart")
    except DataError as error:
        pytest.skip(str(error).splitlines()[0])
    train = np.arange(len(heart)) % 4 > 0
    x, y = heart.x[train], heart.y[train]
    ours = FederatedKNeighborsClassifier(5).fit(x, y, groups=heart.keys[train])
    agree = ours.predict(heart.x[~train]) == KNeighborsClassifier(5).fit(x, y).predict(heart.x[~train])
    # Patients alike in every column are at one distance, of which scikit-learn takes some.
    assert agree.mean() > 0.98
    np.testing.assert_array_equal(
        ours.predict(heart.x[~train]), FederatedKNeighborsClassifier(5).fit(x, y).predict(heart.x[~train])
    )


def test_it_can_be_validated_and_pickled():
    model = FederatedKNeighborsClassifier(5).fit(X_TRAIN, NAMES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X_TEST), model.predict(X_TEST))
    scores = cross_val_score(FederatedKNeighborsClassifier(5), IRIS.data, IRIS.target, cv=5)
    np.testing.assert_allclose(scores, cross_val_score(KNeighborsClassifier(5), IRIS.data, IRIS.target, cv=5))


def test_what_is_refused():
    with pytest.raises(NotFittedError):
        FederatedKNeighborsClassifier().predict(X_TEST)
    with pytest.raises(DataError, match="n_neighbors=9 and n_samples = 4"):
        FederatedKNeighborsClassifier(9).fit(X_TRAIN[:4], NAMES[:4])
    with pytest.raises(PlanError, match="n_neighbors=0"):
        FederatedKNeighborsClassifier(0).fit(X_TRAIN, NAMES)
    with pytest.raises(PlanError, match="weights='near'"):
        FederatedKNeighborsClassifier(weights="near").fit(X_TRAIN, NAMES)
    with pytest.raises(ValueError, match="3 features, but FederatedKNeighborsClassifier is expecting 4"):
        FederatedKNeighborsClassifier().fit(X_TRAIN, NAMES).predict(X_TEST[:, :3])
