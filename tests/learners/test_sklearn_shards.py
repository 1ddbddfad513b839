"""scikit-learn's partial_fit over shards: the average by hand, on every engine; nearly one machine's accuracy."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import IncrementalPCA
from sklearn.linear_model import PassiveAggressiveClassifier, Perceptron, SGDClassifier, SGDRegressor
from sklearn.naive_bayes import BernoulliNB, GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core.errors import PlanError
from insitu.data import Clients
from insitu.data.partition import iid
from insitu.engines.inline import Inline
from insitu.engines.processes import Processes
from insitu.engines.spmd import Spmd
from insitu.learners.sklearn import SklearnLearner

X, Y = load_digits(return_X_y=True)
X = X / 16
TRAIN, TEST = np.arange(len(X)) % 4 > 0, np.arange(len(X)) % 4 == 0
SHARDS = [np.arange(0, 200), np.arange(200, 350), np.arange(350, 600)]


def passive_aggressive():
    """scikit-learn 1.8 names SGDClassifier in its place; it is there, and must work while it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PassiveAggressiveClassifier(C=0.1, shuffle=False)


# Unshuffled, so that nothing is drawn that a loop by hand could not draw as well.
KINDS = {
    "sgd-classifier": lambda: SGDClassifier(loss="log_loss", shuffle=False),
    "sgd-hinge": lambda: SGDClassifier(shuffle=False, learning_rate="constant", eta0=0.01),
    "sgd-regressor": lambda: SGDRegressor(shuffle=False),
    "perceptron": lambda: Perceptron(shuffle=False),
    "passive-aggressive": passive_aggressive,
    "mlp-classifier": lambda: MLPClassifier((8,), solver="sgd", shuffle=False, batch_size=50),
    "mlp-regressor": lambda: MLPRegressor(hidden_layer_sizes=(8,), solver="sgd", shuffle=False, batch_size=50),
}


def arrays_of(estimator):
    """What is averaged, as a flat list."""
    if hasattr(estimator, "coefs_"):
        return [*estimator.coefs_, *estimator.intercepts_]
    return [np.array(estimator.coef_), np.array(estimator.intercept_)]


def put(estimator, arrays):
    if hasattr(estimator, "coefs_"):
        half = len(arrays) // 2
        estimator.coefs_, estimator.intercepts_ = [a.copy() for a in arrays[:half]], [a.copy() for a in arrays[half:]]
    else:
        estimator.coef_, estimator.intercept_ = arrays[0].copy(), arrays[1].copy()


def by_hand(estimator, start, x, y, rounds):
    """Parameter averaging with scikit-learn alone: every shard goes over its rows from the mean of all."""
    more = (
        {"classes": np.unique(y)} if hasattr(estimator, "predict_proba") or "Class" in type(estimator).__name__ else {}
    )
    if isinstance(estimator, Perceptron):
        more = {"classes": np.unique(y)} if is_classifier(estimator) else {}
    mean, steps = start, 1.0
    for _ in range(rounds):
        told, counts = [], []
        for shard in SHARDS:
            own = clone(estimator)
            if hasattr(own, "hidden_layer_sizes"):
                own.set_params(learning_rate_init=1e-300).partial_fit(x[:60], y[:60], **more)
                own.set_params(**estimator.get_params())
                del own._optimizer
            else:
                own.partial_fit(x[:60], y[:60], **more)
                own.t_ = steps
            put(own, mean)
            told.append(arrays_of(own.partial_fit(x[shard], y[shard])))
            counts.append((len(shard), getattr(own, "t_", 1.0)))
        total = sum(n for n, _ in counts)
        mean = [sum(n * a for (n, _), a in zip(counts, each, strict=True)) / total for each in zip(*told, strict=True)]
        steps = sum(n * t for n, t in counts) / total
    return mean


def run(estimator, x, y, engine, rounds=3, parts=SHARDS, **options):
    plan = insitu.Plan(FedAvg(**{"batch_size": None, **options}), learner=SklearnLearner(estimator))
    clients = Clients.from_arrays(x, y, parts)
    return insitu.run(plan, clients, rounds=rounds, engine=engine, seed=4, store=None, observers=())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_average_by_hand(kind):
    estimator = KINDS[kind]()
    y = Y.astype(float) / 9 if "regressor" in kind else Y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        result = run(estimator, X, y, Inline())
        learner = result.plan.learner
        start = arrays_of(learner.model(learner.init(4)))
        expected = by_hand(estimator, start, X, y, 3)
        found = arrays_of(result.model())
    assert max(np.abs(a - b).max() for a, b in zip(start, expected, strict=True)) > 1e-3
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.reshape(a, np.shape(b)), b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", [Processes(workers=2), Spmd()], ids=["processes", "spmd"])
@pytest.mark.parametrize("kind", ["sgd-classifier", "mlp-classifier"])
def test_shards_over_workers_are_the_same(kind, engine):
    whole, spread = (run(KINDS[kind](), X, Y, e).model() for e in (Inline(), engine))
    for a, b in zip(arrays_of(whole), arrays_of(spread), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "estimator",
    [SGDClassifier(loss="log_loss"), Perceptron(), MLPClassifier((32,), learning_rate_init=0.01)],
    ids=lambda e: type(e).__name__,
)
def test_it_is_nearly_as_good_as_one_machine(estimator):
    x, y = X[TRAIN], Y[TRAIN]
    alone = clone(estimator).set_params(random_state=0)
    for _ in range(15):
        alone.partial_fit(x, y, classes=np.arange(10))
    model = run(estimator, x, y, Inline(), 15, iid(len(x), 4, seed=0), batch_size=50).model()
    assert alone.score(X[TEST], Y[TEST]) > 0.9
    assert model.score(X[TEST], Y[TEST]) > alone.score(X[TEST], Y[TEST]) - 0.02


@pytest.mark.parametrize(
    "estimator", [GaussianNB(), BernoulliNB(), MiniBatchKMeans(), IncrementalPCA()], ids=lambda e: type(e).__name__
)
def test_what_has_no_coefficients_is_refused_with_a_cure(estimator):
    """They have partial_fit, and averaging what they keep would be no model of theirs."""
    with pytest.raises(PlanError, match="SGDClassifier"):
        run(estimator, X, Y, Inline(), 1)
