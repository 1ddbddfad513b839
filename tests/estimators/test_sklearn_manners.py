"""scikit-learn's own checks, and what its users do with an estimator: pipelines, searches, clones, pickles."""

import pickle

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from insitu.algorithms.fedavg import FedAvg
from insitu.estimators import (
    FederatedClassifier,
    FederatedKMeans,
    FederatedKNeighborsClassifier,
    FederatedRegressor,
)
from insitu.learners.numpy import LinearLearner, LogisticLearner

X, Y = load_iris(return_X_y=True)
WARD = np.arange(150) % 3

QUICK = {"rounds": 3, "clients": 2}
BATCHES = FedAvg(batch_size=32)


@parametrize_with_checks(
    [
        FederatedClassifier(LogisticRegression(), **QUICK),
        FederatedClassifier(SGDClassifier(loss="log_loss"), BATCHES, **QUICK),
        FederatedClassifier(LogisticLearner(), FedAvg(lr=0.1, clip=1.0), rounds=5, clients=2),
        FederatedRegressor(SGDRegressor(), BATCHES, **QUICK),
        FederatedRegressor(LinearLearner(), FedAvg(lr=0.05, clip=1.0), rounds=6, clients=2),
        FederatedKNeighborsClassifier(),
        FederatedKMeans(),
    ]
)
# scikit-learn's own checks warn of conversions that they provoke.
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


# ---------------------------------------------------------------- what users do


class Centroids:
    """An object whose get_params gives what it learnt."""

    def __init__(self):
        self.means = np.zeros((3, 4))

    def fit(self, x, y):
        self.means = np.array([x[y == c].mean(axis=0) for c in range(3)])

    def predict(self, x):
        return ((x[:, None] - self.means) ** 2).sum(2).argmin(1)

    def get_params(self):
        return self.means

    def set_params(self, params):
        self.means = params


def modules():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


GIVEN = {
    "estimator": lambda: SGDClassifier(loss="log_loss", alpha=0.01),
    "learner": LogisticLearner,
    "own": Centroids,
    "module": modules,
}


@pytest.mark.parametrize("kind", GIVEN)
def test_clone_pickle_and_repr(kind):
    model = FederatedClassifier(GIVEN[kind](), FedAvg(lr=0.1), rounds=2, clients=3).fit(X, Y)
    copied = clone(model)
    assert copied.estimator is not model.estimator
    assert not hasattr(copied, "result_")
    assert {k: v for k, v in copied.get_params(deep=False).items() if k != "estimator"} == {
        k: v for k, v in model.get_params(deep=False).items() if k != "estimator"
    }
    np.testing.assert_array_equal(copied.fit(X, Y).predict(X), model.predict(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    assert "FederatedClassifier" in repr(model)
    assert "FederatedClassifier" in model._repr_mimebundle_()["text/plain"]


def test_parameters_of_the_estimator_within():
    model = FederatedClassifier(SGDClassifier())
    model.set_params(estimator__alpha=0.5, rounds=7)
    assert model.get_params()["estimator__alpha"] == 0.5
    assert model.estimator.alpha == 0.5
    assert "estimator__alpha" not in model.get_params(deep=False)
    assert set(FederatedClassifier(Centroids()).get_params()) == set(model.get_params(deep=False))


def test_a_search_over_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), FederatedClassifier(SGDClassifier(), BATCHES, rounds=4, clients=3))
    grid = {
        "federatedclassifier__estimator__alpha": [1e-4, 10.0],
        "federatedclassifier__algorithm": [FedAvg(batch_size=32), FedAvg(batch_size=64, epochs=2)],
    }
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, Y)
    assert search.best_params_["federatedclassifier__estimator__alpha"] == 1e-4
    assert search.score(X, Y) > 0.85


def test_groups_through_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), FederatedClassifier(LogisticRegression(), rounds=1))
    pipeline.fit(X, Y, federatedclassifier__groups=WARD)
    assert pipeline[-1].history_[-1]["clients"] == 3


def test_groups_reach_each_fold():
    """Routed, a fold's groups go to the splitter and to fit: every fold trains on the other wards' clients."""
    with sklearn.config_context(enable_metadata_routing=True):
        model = FederatedClassifier(LogisticRegression(), rounds=1).set_fit_request(groups=True)
        search = GridSearchCV(model, {"estimator__C": [0.1, 1.0]}, cv=GroupKFold(3), refit=True)
        search.fit(X, Y, groups=WARD)
        assert search.best_estimator_.history_[-1]["clients"] == 3
        scores = cross_val_score(model, X, Y, cv=GroupKFold(3), params={"groups": WARD})
        assert scores.min() > 0.85


def test_groups_may_go_to_the_splitter_alone():
    model = FederatedClassifier(LogisticRegression(), rounds=1, clients=4)
    assert cross_val_predict(model, X, Y, groups=WARD, cv=GroupKFold(3)).shape == (150,)


def test_k_means_is_a_step_of_a_pipeline():
    pipeline = make_pipeline(FederatedKMeans(6), LogisticRegression(max_iter=500))
    assert cross_val_score(pipeline, X, Y, cv=3).mean() > 0.85


def test_the_constructor_stores_and_nothing_else():
    for cls in (FederatedClassifier, FederatedRegressor):
        assert vars(cls("nonsense", rounds=-3, engine=7))["rounds"] == -3
    assert vars(FederatedKMeans(-1)) == FederatedKMeans(-1).get_params()
    assert vars(FederatedKNeighborsClassifier(-1)) == FederatedKNeighborsClassifier(-1).get_params()
