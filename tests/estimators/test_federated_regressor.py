"""FederatedRegressor: as good as the same regressor on one machine."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDRegressor
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedsgd import FedSGD
from insitu.core.errors import PlanError, RoundError
from insitu.estimators import FederatedRegressor
from insitu.learners.numpy import LinearLearner

X, Y = load_diabetes(return_X_y=True)
X = StandardScaler().fit_transform(X)
Y = (Y - Y.mean()) / Y.std()
X_TRAIN, X_TEST, Y_TRAIN, Y_TEST = train_test_split(X, Y, test_size=0.25, random_state=0)


@pytest.mark.parametrize(
    ("estimator", "algorithm", "rounds"),
    [
        (SGDRegressor(alpha=0.01), FedAvg(batch_size=32), 4),
        (Ridge(), None, 1),
        (LinearLearner(), FedAvg(lr=0.02), 10),
    ],
    ids=["sgd", "ridge", "learner"],
)
def test_r2_is_the_central_ones(estimator, algorithm, rounds):
    model = FederatedRegressor(estimator, algorithm, rounds=rounds, clients=5).fit(X_TRAIN, Y_TRAIN)
    central = LinearRegression().fit(X_TRAIN, Y_TRAIN).score(X_TEST, Y_TEST)
    assert abs(model.score(X_TEST, Y_TEST) - central) < 0.03
    assert model.predict(X_TEST).shape == Y_TEST.shape


def test_one_client_and_one_round_is_the_estimator_itself():
    model = FederatedRegressor(Ridge(), rounds=1, clients=1).fit(X_TRAIN, Y_TRAIN)
    np.testing.assert_allclose(model.predict(X_TEST), Ridge().fit(X_TRAIN, Y_TRAIN).predict(X_TEST))


def test_averaged_gradients_are_the_pooled_gradient():
    groups = np.arange(len(X_TRAIN)) ** 2 % 7  # clients of unequal size
    options = {"algorithm": FedSGD(lr=0.2), "rounds": 60}
    apart = FederatedRegressor(LinearLearner(), **options).fit(X_TRAIN, Y_TRAIN, groups=groups)
    pooled = FederatedRegressor(LinearLearner(), **options, clients=1).fit(X_TRAIN, Y_TRAIN)
    np.testing.assert_allclose(apart.predict(X_TEST), pooled.predict(X_TEST), rtol=1e-9)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_module_of_one_or_more_outputs(outputs):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    y = Y_TRAIN if outputs == 1 else np.stack([Y_TRAIN, -Y_TRAIN], axis=1)
    model = FederatedRegressor(torch.nn.Linear(10, outputs), FedAvg(lr=0.05), rounds=5, clients=4)
    predicted = model.fit(X_TRAIN, y).predict(X_TRAIN)
    assert predicted.shape == y.shape
    assert model.score(X_TRAIN, y) > 0.4


def test_a_column_of_targets_is_taken_with_a_warning():
    model = FederatedRegressor(Ridge(), rounds=1, clients=2)
    with pytest.warns(DataConversionWarning):
        model.fit(X_TRAIN, Y_TRAIN[:, None])
    assert model.predict(X_TEST).ndim == 1


def test_before_fit():
    with pytest.raises(NotFittedError):
        FederatedRegressor(Ridge()).predict(X_TEST)


def test_a_classifier_is_refused():
    with pytest.raises(PlanError, match="is a classifier: use FederatedClassifier"):
        FederatedRegressor(LogisticRegression()).fit(X_TRAIN, Y_TRAIN)


def test_a_learning_rate_that_is_too_large_is_an_error_and_not_a_model():
    model = FederatedRegressor(LinearLearner(), FedAvg(lr=1e6), rounds=30, clients=2)
    with pytest.raises(RoundError, match="a smaller learning rate"), np.errstate(all="ignore"):
        model.fit(X_TRAIN, Y_TRAIN)
    with pytest.raises(NotFittedError):
        model.predict(X_TEST)
