"""SklearnLearner against what scikit-learn itself does with the same data, seeds and coefficients."""

from __future__ import annotations

import json
import warnings
from inspect import signature

import cloudpickle
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    ElasticNet,
    GammaRegressor,
    HuberRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Perceptron,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.metrics import log_loss
from sklearn.naive_bayes import MultinomialNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, LinearSVC, LinearSVR

from insitu.core import tree
from insitu.core.errors import DataError, PlanError, UpdateError
from insitu.core.protocols import FitLearner, GradientLearner
from insitu.core.types import Client, Data, Schema, Variables
from insitu.learners.numpy import LogisticLearner
from insitu.learners.sklearn import SklearnLearner

IRIS = load_iris()
SHUFFLED = np.random.default_rng(0).permutation(150)
X = ((IRIS.data - IRIS.data.mean(0)) / IRIS.data.std(0))[SHUFFLED]
Y = IRIS.target_names[IRIS.target][SHUFFLED]
FLOWERS = Data(X, Y)
PRICES = Data(X, 2 + np.exp(0.3 * X @ [1.0, 0.5, -1.0, 0.2]))

CLASSIFIERS = [
    SGDClassifier(loss="log_loss", alpha=0.01),
    SGDClassifier(class_weight={"setosa": 1.0, "versicolor": 2.0, "virginica": 1.0}),
    Perceptron(),
    LogisticRegression(),
    LogisticRegression(solver="saga", max_iter=500),
    RidgeClassifier(),
    LinearSVC(),
    MLPClassifier(hidden_layer_sizes=(8,), learning_rate_init=0.02),
    MLPClassifier(hidden_layer_sizes=(8,), solver="lbfgs", max_iter=50),
]
REGRESSORS = [
    SGDRegressor(),
    Ridge(),
    LinearRegression(),
    Lasso(0.01),
    ElasticNet(0.01),
    HuberRegressor(),
    PoissonRegressor(),
    GammaRegressor(),
    LinearSVR(),
    MLPRegressor(hidden_layer_sizes=(8,), learning_rate_init=0.02),
]


def learner_of(estimator, data: Data = FLOWERS) -> SklearnLearner:
    classes = np.unique(Y) if data.y.dtype.kind == "U" else None
    return SklearnLearner(estimator).resolve(Schema(features=(4,), classes=classes))


def rounds(learner: SklearnLearner, data: Data, n: int, **work) -> Variables:
    variables = learner.init(0)
    for seed in range(n):
        variables, _ = learner.fit(variables, data, **{"epochs": 1, "batch_size": 10, "seed": seed, **work})
    return variables


def describe(estimator) -> str:
    return repr(estimator)


def same(a: Variables, b: Variables) -> bool:
    pairs = zip(tree.leaves(a.shared), tree.leaves(b.shared), strict=True)
    return all(p == q and np.array_equal(x, y) for (p, x), (q, y) in pairs)


# ---------------------------------------------------------------- what every supported estimator does


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=describe)
def test_classifiers_learn_and_their_models_predict_in_scikit_learns_own_way(estimator):
    learner = learner_of(estimator)
    before = learner.evaluate(learner.init(0), FLOWERS)
    variables = rounds(learner, FLOWERS, 8)
    after, model = learner.evaluate(variables, FLOWERS), learner.model(variables)
    assert after["accuracy"] > 120 > before["accuracy"]
    assert tuple(after) == ("examples", *learner.metric_names)
    assert after["accuracy"] == round(model.score(X, Y) * 150)
    if hasattr(model, "predict_proba"):
        assert after["loss"] == pytest.approx(150 * log_loss(Y, model.predict_proba(X)))
    else:
        assert after["loss"] == 150 - after["accuracy"]
    np.testing.assert_array_equal(learner.predict(variables, X), model.predict(X))
    assert model.classes_.tolist() == sorted(set(Y))
    assert model.n_features_in_ == 4
    assert repr(model) == repr(estimator)


@pytest.mark.parametrize("estimator", REGRESSORS, ids=describe)
def test_regressors_learn_and_their_models_predict_in_scikit_learns_own_way(estimator):
    learner = learner_of(estimator, PRICES)
    variables = rounds(learner, PRICES, 8)
    sums, model = learner.evaluate(variables, PRICES), learner.model(variables)
    assert sums == pytest.approx({"examples": 150.0, "loss": np.sum((model.predict(X) - PRICES.y) ** 2)})
    assert sums["loss"] < 0.35 * learner.evaluate(learner.init(0), PRICES)["loss"]
    np.testing.assert_array_equal(learner.predict(variables, X), model.predict(X))


@pytest.mark.parametrize("estimator", CLASSIFIERS + REGRESSORS, ids=describe)
def test_the_same_seed_gives_the_same_bits_and_inputs_stay_as_they_are(estimator):
    data = FLOWERS if estimator in CLASSIFIERS else PRICES
    settings, learner = repr(estimator), learner_of(estimator, data)
    start = learner.init(3)
    kept = tree.copy(start.shared)
    one, _ = learner.fit(start, data, epochs=2, batch_size=16, seed=7)
    other = cloudpickle.loads(cloudpickle.dumps(learner))
    two, _ = other.fit(other.init(3), data, epochs=2, batch_size=16, seed=7)
    assert same(one, two)
    assert same(start, Variables(shared=kept))
    assert repr(estimator) == settings
    assert not any(name.endswith("_") and not name.startswith("_") for name in vars(estimator))


@pytest.mark.parametrize("estimator", CLASSIFIERS + REGRESSORS, ids=describe)
def test_learners_keep_the_protocol_and_their_config_is_json(estimator):
    learner = learner_of(estimator, FLOWERS if estimator in CLASSIFIERS else PRICES)
    assert isinstance(learner, FitLearner)
    assert not isinstance(learner, GradientLearner)
    config = json.loads(json.dumps(learner.config()))
    assert config["name"] == "sklearn"
    assert config["estimator"].endswith(f":{type(estimator).__name__}")
    assert config["features"] == 4


# ---------------------------------------------------------------- training, as scikit-learn does it by hand


@pytest.mark.parametrize(
    "estimator",
    [
        SGDClassifier(loss="log_loss"),
        SGDClassifier(learning_rate="invscaling", eta0=0.1),
        SGDClassifier(learning_rate="constant", eta0=0.1, fit_intercept=False),
        Perceptron(),
    ],
    ids=describe,
)
def test_rounds_of_one_client_are_partial_fit_without_interruption(estimator):
    learner = learner_of(estimator)
    by_hand = type(estimator)(**estimator.get_params())
    for seed in range(4):
        by_hand.set_params(random_state=np.random.RandomState(np.random.MT19937(seed)))
        for _ in range(2):
            by_hand.partial_fit(X, Y, classes=np.unique(Y))
    variables = rounds(learner, FLOWERS, 4, epochs=2, batch_size=None)
    np.testing.assert_allclose(variables.shared["coef_"], by_hand.coef_, rtol=1e-12)
    assert ("intercept_" in variables.shared) == getattr(estimator, "fit_intercept", True)
    np.testing.assert_allclose(learner.model(variables).intercept_, by_hand.intercept_, rtol=1e-12)


def test_every_pass_goes_through_all_examples_once_in_shuffled_batches(monkeypatch):
    seen = []

    def partial_fit(self, x, y, real=SGDRegressor.partial_fit):
        seen.append(y.copy())
        return real(self, x, y)

    learner = learner_of(SGDRegressor(), PRICES)
    learner.init(0)
    monkeypatch.setattr(SGDRegressor, "partial_fit", partial_fit)
    learner.fit(learner.init(0), PRICES, epochs=2, batch_size=40, seed=5)
    assert [len(y) for y in seen] == [40, 40, 40, 30] * 2
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert sorted(first) == sorted(second) == sorted(PRICES.y)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, PRICES.y)


@pytest.mark.parametrize("batch_size", [None, 7, 64])
@pytest.mark.parametrize("own", ["auto", 20, 500])
def test_perceptrons_train_as_partial_fit_does_on_the_same_batches(batch_size, own):
    learner = learner_of(MLPClassifier(hidden_layer_sizes=(5,), batch_size=own))
    start = learner.init(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted, _ = learner.fit(start, FLOWERS, epochs=3, batch_size=batch_size, seed=4)

    by_hand = MLPClassifier(hidden_layer_sizes=(5,), random_state=np.random.RandomState(np.random.MT19937(4)))
    by_hand.partial_fit(X, Y, classes=np.unique(Y))  # only to make it; all that this left is then replaced
    by_hand.coefs_ = [start.shared["coefs_"][i].copy() for i in "01"]
    by_hand.intercepts_ = [start.shared["intercepts_"][i].copy() for i in "01"]
    del by_hand._optimizer
    by_hand.random_state = np.random.RandomState(np.random.MT19937(4))
    order = np.random.Generator(np.random.PCG64(4))
    for _ in range(3):
        places = np.arange(150) if batch_size is None else order.permutation(150)
        for cut in np.split(places, range(batch_size or 150, 150, batch_size or 150)):
            size = len(cut) if batch_size else {"auto": 150, 20: 20, 500: 150}[own]
            by_hand.batch_size = size
            by_hand.partial_fit(X[cut], Y[cut])
    for i in "01":
        np.testing.assert_array_equal(fitted.shared["coefs_"][i], by_hand.coefs_[int(i)])
        np.testing.assert_array_equal(fitted.shared["intercepts_"][i], by_hand.intercepts_[int(i)])


def test_perceptrons_start_from_glorots_draws_of_the_seed():
    start = learner_of(MLPRegressor(hidden_layer_sizes=(6, 5)), PRICES).init(11)
    random = np.random.RandomState(np.random.MT19937(11))
    for layer, (n, m) in enumerate([(4, 6), (6, 5), (5, 1)]):
        bound = np.sqrt(6 / (n + m))
        weight, bias = random.uniform(-bound, bound, (n, m)), random.uniform(-bound, bound, m)
        np.testing.assert_array_equal(start.shared["coefs_"][str(layer)], weight)
        np.testing.assert_array_equal(start.shared["intercepts_"][str(layer)], bias)


def test_perceptrons_start_otherwise_from_another_seed_and_linear_models_from_zero():
    mlp, linear = learner_of(MLPClassifier(hidden_layer_sizes=(5,))), learner_of(LogisticRegression())
    assert same(mlp.init(1), mlp.init(1))
    assert not same(mlp.init(1), mlp.init(2))
    assert not any(leaf.any() for leaf in tree.values(linear.init(1).shared))


@pytest.mark.parametrize("estimator", [LogisticRegression(tol=1e-10), LinearSVC(random_state=0)], ids=describe)
def test_estimators_without_partial_fit_are_fitted_whole(estimator):
    learner = learner_of(estimator)
    right = type(estimator)(**estimator.get_params()).fit(X, Y)
    for work in ({"epochs": 1, "batch_size": None}, {"epochs": 5, "batch_size": 3}):
        fitted, _ = learner.fit(learner.init(0), FLOWERS, seed=0, **work)
        np.testing.assert_allclose(fitted.shared["coef_"], right.coef_, rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(fitted.shared["intercept_"], right.intercept_, rtol=1e-2, atol=1e-3)


def test_warm_starts_go_on_from_the_global_coefficients_and_stop_without_a_warning():
    learner = learner_of(LogisticRegression(max_iter=2))
    best = LogisticRegression(tol=1e-8, max_iter=1000).fit(X, Y)

    def objective(model) -> float:
        return 150 * log_loss(Y, model.predict_proba(X)) + np.sum(model.coef_**2) / 2

    found = [objective(learner.model(rounds(learner, FLOWERS, n))) for n in (1, 3, 20)]
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(objective(best), rel=0.01)


def test_averaging_two_halves_of_a_linear_regression_weighs_them():
    learner = learner_of(LinearRegression(), PRICES)
    halves = PRICES.take(slice(0, 75)), PRICES.take(slice(75, 150))
    fits = [learner.fit(learner.init(0), half, epochs=1, batch_size=None, seed=0)[0].shared for half in halves]
    mean = Variables(shared=tree.scale(tree.add(*fits), 0.5))
    by_hand = np.mean([LinearRegression().fit(half.x, half.y).predict(X) for half in halves], axis=0)
    np.testing.assert_allclose(learner.predict(mean, X), by_hand, rtol=1e-10)


# ---------------------------------------------------------------- clients that lack classes


@pytest.mark.parametrize("held", [["virginica"], ["setosa", "versicolor"]], ids=["one class", "two classes"])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=describe)
def test_a_client_that_lacks_classes_is_learnt_from(estimator, held):
    if not hasattr(estimator, "partial_fit") and "sample_weight" not in signature(estimator.fit).parameters:
        pytest.skip("perceptrons weigh examples from scikit-learn 1.7 on")
    data, learner = FLOWERS.take(np.isin(Y, held)), learner_of(estimator)
    learner.check(Client("a", data))
    fitted, sums = learner.fit(learner.init(0), data, epochs=20, batch_size=10, seed=0)
    assert [x.shape for x in tree.values(fitted.shared)] == [x.shape for x in tree.values(learner.init(0).shared)]
    # Above all it says of its own examples what they are: with liblinear signs could turn.
    assert sums["accuracy"] > 0.9 * len(data)
    assert set(learner.predict(fitted, data.x)) <= set(held)


def test_stand_ins_for_missing_classes_leave_the_optimum_where_it_is():
    data = FLOWERS.take(Y != "virginica")
    learner = learner_of(LogisticRegression(C=0.5, tol=1e-9, max_iter=10_000))
    fitted, _ = learner.fit(learner.init(0), data, epochs=1, batch_size=None, seed=0)
    ours = LogisticLearner(4, np.unique(Y), l2=1 / (0.5 * len(data)))
    at = Variables(shared={"weight": fitted.shared["coef_"], "bias": fitted.shared["intercept_"]})
    grads, _, _ = ours.gradient(at, {**ours.batch(data, slice(None)), "weight": np.ones(len(data))}, 0)
    np.testing.assert_allclose(grads["shared"]["weight"], 0, atol=1e-5)


def test_two_classes_of_which_a_client_has_one():
    data = Data(X[Y == "setosa"], np.full(50, 1))
    for estimator in (LogisticRegression(), LogisticRegression(solver="liblinear"), LinearSVC()):
        learner = SklearnLearner(estimator, classes=2, features=4)
        fitted, sums = learner.fit(learner.init(0), data, epochs=1, batch_size=None, seed=0)
        assert fitted.shared["coef_"].shape == (1, 4)
        assert sums["accuracy"] == 50
        assert set(learner.predict(fitted, data.x)) == {1}


def test_an_estimator_that_cannot_weigh_examples_refuses_such_a_client_by_name():
    learner = learner_of(LinearDiscriminantAnalysis())
    learner.check(Client("a", FLOWERS))
    with pytest.raises(DataError, match=r"client 'b' has no example of class 'setosa', .*SGDClassifier"):
        learner.check(Client("b", FLOWERS.take(Y != "setosa")))


# ---------------------------------------------------------------- labels, shapes and refusals


@pytest.mark.parametrize("labels", [[0, 1, 2], [3, 5, 9], ["a", "b", "c"]], ids=str)
def test_labels_come_back_as_they_were_given(labels):
    y = np.array(labels)[np.searchsorted(np.unique(Y), Y)]
    learner = SklearnLearner(SGDClassifier(), classes=labels, features=4)
    variables = rounds(learner, Data(X, y), 3)
    predicted = learner.predict(variables, X)
    assert predicted.dtype == y.dtype
    assert np.mean(predicted == y) > 0.8


def test_pictures_are_flattened():
    learner = SklearnLearner(Ridge()).resolve(Schema(features=(2, 2)))
    pictures = Data(X.reshape(-1, 2, 2), PRICES.y)
    learner.check(Client("a", pictures))
    fitted, _ = learner.fit(learner.init(0), pictures, epochs=1, batch_size=None, seed=0)
    np.testing.assert_allclose(learner.predict(fitted, pictures.x), Ridge().fit(X, PRICES.y).predict(X))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(X, np.where(Y == "setosa", "rose", Y)), r"client 'a' has the label 'rose'"),
        (Data(X[:, :3], Y), r"client 'a' has 3 features"),
        (Data(X), r"client 'a' has y in shape \(\)"),
    ],
)
def test_data_that_cannot_be_learnt_from_is_named(data, message):
    with pytest.raises(DataError, match=message):
        learner_of(SGDClassifier()).check(Client("a", data))


def test_two_targets_are_refused_and_the_held_out_part_is_checked():
    learner = learner_of(Ridge(), PRICES)
    with pytest.raises(DataError, match=r"client 'a' has y of type float64 in shape \(150, 2\)"):
        learner.check(Client("a", Data(X, np.ones((150, 2)))))
    with pytest.raises(DataError, match=r"client 'a' \(held out\) has y of type <U10"):
        learner.check(Client("a", PRICES, FLOWERS))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (SGDClassifier, r"estimator=SGDClassifier is a class: give an instance"),
        (object(), r"no scikit-learn estimator: use EstimatorLearner"),
        (make_pipeline(Ridge()), r"preprocess the data before"),
        (KMeans(2), r"neither classifier nor regressor"),
        (LogisticRegression(class_weight="balanced"), r"class_weight='balanced'.*\{label: weight\}"),
        (SGDClassifier(average=True), r"average=True"),
        (SGDClassifier(early_stopping=True), r"early_stopping=True"),
    ],
    ids=["class", "object", "pipeline", "transformer", "balanced", "average", "early stopping"],
)
def test_what_cannot_be_averaged_is_refused_at_once(estimator, message):
    with pytest.raises(PlanError, match=message):
        SklearnLearner(estimator)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (MultinomialNB(), r"MultinomialNB keeps what it learns in .*feature_log_prob_.*EstimatorLearner"),
        (RandomForestClassifier(2), r"RandomForestClassifier keeps what it learns in .*estimators_"),
        (SVC(kernel="linear"), r"SVC does not let its coefficients be set"),
        (LogisticRegression(C=-1), r"cannot be fitted to a few random rows .*'C' parameter"),
        (PLSRegression(1), r"PLSRegression predicts from more than its coefficients"),
    ],
    ids=str,
)
def test_what_is_more_than_coefficients_is_refused_by_init(estimator, message):
    data = PRICES if isinstance(estimator, PLSRegression) else FLOWERS
    with pytest.raises(PlanError, match=message):
        learner_of(estimator, data).init(0)


def test_open_shapes_are_named_with_their_cure():
    with pytest.raises(PlanError, match=r"SklearnLearner\(SGDClassifier\) has classes=None .* give classes="):
        SklearnLearner(SGDClassifier(), features=3).init(0)
    with pytest.raises(PlanError, match=r"has features=None"):
        SklearnLearner(Ridge()).init(0)
    with pytest.raises(PlanError, match=r"classes=2 for the regressor Ridge\(\): leave classes out"):
        SklearnLearner(Ridge(), classes=2)
    assert SklearnLearner(Ridge()).resolve(Schema((3,), np.array([0, 1]))).classes is None


def test_coefficients_of_another_size_are_refused():
    learner = learner_of(Ridge(), PRICES)
    with pytest.raises(UpdateError, match=r"coef_ has shape \(5,\) and the model's has \(4,\)"):
        learner.model(Variables(shared={"coef_": np.zeros(5), "intercept_": np.zeros(1)}))


def test_the_learning_rate_goes_on_falling_only_where_it_falls():
    for rate, falls in (("optimal", True), ("invscaling", True), ("constant", False), ("adaptive", False)):
        learner = learner_of(SGDClassifier(learning_rate=rate, eta0=0.1))
        fitted = rounds(learner, FLOWERS, 2)
        assert tree.describe(fitted.buffers) == tree.describe(learner.init(0).buffers)
        assert ("t_" in fitted.buffers) == falls
        if falls:
            assert fitted.buffers["t_"].tolist() == [301.0]
