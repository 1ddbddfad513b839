"""The NumPy learners against finite differences and against scikit-learn's optima."""

from __future__ import annotations

import json

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss

from insitu.core import tree
from insitu.core.errors import DataError, PlanError
from insitu.core.protocols import FitLearner, GradientLearner
from insitu.core.types import Client, Data, Schema, Variables
from insitu.learners.numpy import LinearLearner, LogisticLearner

WORDS = np.array(["cat", "dog", "emu"])


def rows(n: int, features: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, features))


def somewhere(learner, seed: int = 1) -> Variables:
    random = np.random.default_rng(seed)
    return Variables(shared=tree.map(lambda w: random.normal(size=w.shape).astype(w.dtype), learner.init(0).shared))


def batch_of(learner, data: Data, weight: np.ndarray) -> dict:
    return {**learner.batch(data, np.arange(len(data))), "weight": weight, "seed": np.asarray(0)}


def linear(outputs: int | None = None, l2: float = 0.3) -> tuple[LinearLearner, Data]:
    y = np.random.default_rng(2).normal(size=(7,) if outputs is None else (7, outputs))
    return LinearLearner(4, outputs, l2), Data(rows(7), y)


def logistic(l2: float = 0.3) -> tuple[LogisticLearner, Data]:
    return LogisticLearner(4, WORDS, l2), Data(rows(7), WORDS[[0, 1, 2, 2, 1, 0, 0]])


CASES = [linear(), linear(3), logistic()]
NAMES = ["one output", "three outputs", "softmax"]


@pytest.mark.parametrize(("learner", "data"), CASES, ids=NAMES)
def test_the_gradient_is_that_of_the_weighted_mean_loss_and_the_penalty(learner, data):
    weight = np.random.default_rng(3).uniform(0.5, 2, size=len(data))
    start = somewhere(learner)

    def objective(flat: np.ndarray) -> float:
        # Written out here a second time, from the formula and example by example.
        shared = tree.unflatten(flat, start.shared)
        losses = []
        for x, y in zip(data.x, np.asarray(data.y), strict=True):
            scores = shared["weight"] @ x + shared["bias"]
            if isinstance(learner, LogisticLearner):
                p = np.exp(scores) / np.exp(scores).sum()
                losses.append(-np.log(p[list(WORDS).index(y)]))
            else:
                losses.append(np.mean((scores - y) ** 2))
        penalty = learner.l2 / 2 * np.sum(shared["weight"] ** 2)
        return float(np.sum(weight * np.array(losses)) / weight.sum() + penalty)

    at, h = tree.flatten(start.shared), 1e-6
    steps = h * np.eye(len(at))
    slopes = [(objective(at + step) - objective(at - step)) / (2 * h) for step in steps]
    grads, state, _ = learner.gradient(start, batch_of(learner, data, weight), 0)
    np.testing.assert_allclose(tree.flatten(grads["shared"]), slopes, rtol=1e-6, atol=1e-8)
    assert grads["personal"] == {}
    assert state == {"buffers": {}, "personal": {}}


@pytest.mark.parametrize(("learner", "data"), CASES, ids=NAMES)
def test_sums_are_weighted_and_agree_with_evaluate(learner, data):
    start = somewhere(learner)
    _, _, sums = learner.gradient(start, batch_of(learner, data, np.ones(len(data))), 0)
    assert tuple(sums) == ("examples", *learner.metric_names)
    assert all(total.shape == () for total in sums.values())
    assert {name: float(total) for name, total in sums.items()} == pytest.approx(learner.evaluate(start, data))
    _, _, twice = learner.gradient(start, batch_of(learner, data, np.full(len(data), 2.0)), 0)
    assert all(twice[name] == pytest.approx(2 * sums[name]) for name in sums)


@pytest.mark.parametrize(("learner", "data"), CASES, ids=NAMES)
@given(padding=st.integers(0, 5), junk=st.floats(-100, 100), where=st.integers(0, 7))
def test_examples_of_weight_zero_change_nothing(learner, data, padding, junk, where):
    start = somewhere(learner)
    batch = batch_of(learner, data, np.ones(len(data)))
    padded = {
        "x": np.insert(batch["x"], [where] * padding, junk, axis=0),
        "y": np.insert(batch["y"], [where] * padding, 0, axis=0),
        "weight": np.insert(batch["weight"], [where] * padding, 0.0),
        "seed": batch["seed"],
    }
    grads, _, sums = learner.gradient(start, batch, 0)
    grads_padded, _, sums_padded = learner.gradient(start, padded, 0)
    for (_, a), (_, b) in zip(tree.leaves(grads), tree.leaves(grads_padded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert {k: float(v) for k, v in sums.items()} == pytest.approx({k: float(v) for k, v in sums_padded.items()})


@pytest.mark.parametrize(("learner", "data"), CASES, ids=NAMES)
def test_a_batch_of_weight_zero_has_only_the_penalty(learner, data):
    start = somewhere(learner)
    grads, _, sums = learner.gradient(start, batch_of(learner, data, np.zeros(len(data))), 0)
    np.testing.assert_allclose(grads["shared"]["weight"], learner.l2 * start.shared["weight"])
    assert not grads["shared"]["bias"].any()
    assert all(total == 0 for total in sums.values())


def descend(learner, data: Data, lr: float, steps: int) -> Variables:
    at = learner.init(0)
    batch = batch_of(learner, data, np.ones(len(data)))
    for step in range(steps):
        grads, _, _ = learner.gradient(at, batch, step)
        at = Variables(shared=tree.map(lambda w, g: w - lr * g, at.shared, grads["shared"]))
    return at


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_descent_finds_the_linear_optimum_of_scikit_learn(l2):
    x = rows(40)
    y = x @ [1.0, -2.0, 0.5, 0.0] + 3 + np.random.default_rng(4).normal(size=40)
    # Ridge minimises Σ r² + α‖w‖²; ours is Σ r² / n + l2/2 · ‖w‖².
    right = Ridge(alpha=40 * l2 / 2).fit(x, y) if l2 else LinearRegression().fit(x, y)
    at = descend(LinearLearner(4, l2=l2), Data(x, y), 0.1, 2000)
    np.testing.assert_allclose(at.shared["weight"][0], right.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(at.shared["bias"], [right.intercept_], rtol=1e-8)
    np.testing.assert_allclose(LinearLearner(4).predict(at, x), right.predict(x), rtol=1e-8)


def test_descent_finds_the_softmax_optimum_of_scikit_learn():
    x = rows(60)
    y = WORDS[np.argmax(x[:, :3] + 0.5 * rows(60, 3, seed=9), axis=1)]
    l2 = 0.1
    # LogisticRegression minimises C Σ ℓ + ‖W‖²/2; ours is Σ ℓ / n + l2/2 · ‖W‖².
    right = LogisticRegression(C=1 / (60 * l2), tol=1e-12, max_iter=10_000).fit(x, y)
    learner = LogisticLearner(4, WORDS, l2)
    at = descend(learner, Data(x, y), 0.3, 4000)
    np.testing.assert_allclose(learner.predict_proba(at, x), right.predict_proba(x), rtol=1e-4, atol=1e-6)
    assert (learner.predict(at, x) == right.predict(x)).all()
    sums = learner.evaluate(at, Data(x, y))
    assert sums["loss"] / 60 == pytest.approx(log_loss(y, right.predict_proba(x)), rel=1e-5)
    assert sums["accuracy"] / 60 == accuracy_score(y, right.predict(x))


def test_a_large_data_set_is_evaluated_in_pieces_to_the_same_sums():
    learner, n = LogisticLearner(4, 3), 20_001
    data = Data(rows(n), np.random.default_rng(5).integers(0, 3, n))
    start = somewhere(learner)
    p = learner.predict_proba(start, data.x)
    assert learner.evaluate(start, data) == pytest.approx(
        {
            "examples": n,
            "loss": n * log_loss(data.y, p),
            "accuracy": np.sum(p.argmax(axis=1) == data.y),
        }
    )


def test_large_scores_do_not_overflow():
    learner = LogisticLearner(1, 2)
    at = Variables(shared={"weight": np.array([[1e6], [-1e6]]), "bias": np.zeros(2)})
    data = Data(np.array([[1.0], [-1.0]]), np.array([0, 0]))
    grads, _, sums = learner.gradient(at, batch_of(learner, data, np.ones(2)), 0)
    assert np.isfinite(tree.flatten(grads["shared"])).all()
    assert float(sums["loss"]) == 2e6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("learner", [LinearLearner(4), LogisticLearner(4, 3)], ids=["linear", "logistic"])
def test_the_dtype_is_kept_through_a_step(learner, dtype):
    learner = type(learner)(**{**vars(learner), "dtype": dtype, "l2": 0.1})
    data = Data(rows(5), np.array([0, 1, 2, 1, 0]))
    grads, _, _ = learner.gradient(learner.init(0), batch_of(learner, data, np.ones(5)), 0)
    assert {leaf.dtype for leaf in tree.values(learner.init(0).shared)} == {np.dtype(dtype)}
    assert {leaf.dtype for leaf in tree.values(grads)} == {np.dtype(dtype)}


def test_pictures_are_flattened():
    learner = LogisticLearner().resolve(Schema(features=(2, 2), classes=np.array([3, 5])))
    assert (learner.features, learner.classes) == (4, (3, 5))
    data = Data(rows(6).reshape(6, 2, 2), np.array([3, 5, 5, 3, 3, 5]))
    learner.check(Client("a", data))
    at = descend(learner, data, 0.5, 20)
    assert set(learner.predict(at, data.x)) <= {3, 5}
    assert learner.predict(at, data.x[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("classes", "kept", "labels"),
    [
        (3, 3, [0, 1, 2]),
        ([2, 0, 1], 3, [0, 1, 2]),
        ([1, 2, 3], (1, 2, 3), [1, 2, 3]),
        (["b", "a"], ("a", "b"), ["a", "b"]),
        (np.array([True, False]), (False, True), [False, True]),
    ],
)
def test_labels_come_back_as_they_were_given(classes, kept, labels):
    learner = LogisticLearner(1, classes)
    assert learner.classes == kept
    y = np.array(labels)
    np.testing.assert_array_equal(learner.batch(Data(np.zeros((len(y), 1)), y), slice(None))["y"], range(len(y)))
    certain = Variables(shared={"weight": np.zeros((len(y), 1)), "bias": np.eye(len(y))[-1]})
    predicted = learner.predict(certain, np.zeros((2, 1)))
    assert predicted.tolist() == [labels[-1]] * 2
    assert predicted.dtype == y.dtype
    assert json.loads(json.dumps(learner.config()))["classes"] == (list(kept) if isinstance(kept, tuple) else kept)


def test_text_labels_kept_as_objects_are_read():
    learner = LogisticLearner(1, ["a", "b"])
    data = Data(np.zeros((2, 1)), np.array(["b", "a"], dtype=object))
    assert learner.batch(data, [0, 1])["y"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("learner", "y", "message"),
    [
        (
            LogisticLearner(2, 3),
            [0, 3],
            r"client 'north' has the label 3, .* 3 classes 0, 1, 2: give classes=",
        ),
        (LogisticLearner(2, 9), [0, -1], r"label -1, which is none of the 9 classes 0, 1, …, 8"),
        (LogisticLearner(2, ["a", "b"]), ["a", "x"], r"label 'x'"),
        (LogisticLearner(2, ["a", "b"]), [0, 1], r"labels of type int64, and the classes are 'a', 'b'"),
        (LogisticLearner(2, 3), [[0], [1]], r"y in shape \(2, 1\)"),
        (LogisticLearner(2, 3), [0.5, 1.0], r"label 0.5"),
        (LinearLearner(2), ["a", "b"], r"y of type <U1"),
        (LinearLearner(2), [[0.0], [1.0]], r"learns numbers in shape \(2,\)"),
        (LinearLearner(2, outputs=2), [0.0, 1.0], r"learns numbers in shape \(2, 2\)"),
        (LinearLearner(3), [0.0, 1.0], r"client 'north' has 2 features an example, .* features=3"),
    ],
)
def test_data_that_cannot_be_learnt_from_is_named(learner, y, message):
    good = Data(np.zeros((2, 2)), np.array(y))
    with pytest.raises(DataError, match=message):
        learner.check(Client("north", good))


@pytest.mark.parametrize("learner", [LinearLearner(2), LogisticLearner(2, 2)], ids=["linear", "logistic"])
def test_missing_targets_columns_by_name_and_the_held_out_part_are_named(learner):
    good = Data(np.zeros((2, 2)), np.array([0, 1]))
    with pytest.raises(DataError, match=r"client 'a' has y (of|in)"):
        learner.check(Client("a", Data(good.x)))
    with pytest.raises(DataError, match=r"client 'a' \(held out\) has 1 features"):
        learner.check(Client("a", good, Data(np.zeros((2, 1)), good.y)))
    with pytest.raises(DataError, match="dict of columns"):
        learner.predict(learner.init(0), {"age": np.zeros(2)})
    with pytest.raises(DataError, match="encode it as numbers"):
        learner.check(Client("a", Data(np.array([["x", "y"]]), good.y[:1])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearLearner().init(0), r"LinearLearner has features=None .* give features="),
        (lambda: LogisticLearner(3).init(0), r"classes=None .* give classes="),
        (lambda: LogisticLearner(3, 1), r"Expected classes=1 to hold at least two labels"),
        (lambda: LogisticLearner(3, [1, "a"], dtype="f"), r"Expected dtype='f'"),
        (lambda: LogisticLearner(3, np.array([1, "a"], object)), r"labels of one type"),
        (lambda: LinearLearner(0), r"Expected features=0"),
        (lambda: LinearLearner(2, 0), r"Expected outputs=0"),
        (lambda: LinearLearner(2, l2=-1.0), r"Expected l2=-1.0 >= 0"),
    ],
)
def test_bad_arguments_fail_with_their_name_and_value(make, message):
    with pytest.raises(PlanError, match=message):
        make()


@pytest.mark.parametrize(("learner", "data"), CASES, ids=NAMES)
def test_learners_keep_the_protocol_travel_and_leave_their_inputs_alone(learner, data):
    assert isinstance(learner, GradientLearner)
    assert not isinstance(learner, FitLearner)
    again = cloudpickle.loads(cloudpickle.dumps(learner))
    assert again == learner
    assert again.config() == learner.config()
    assert learner.config()["name"].startswith("insitu.learners.numpy:")
    json.dumps(learner.config())
    start = somewhere(learner)
    before, batch = tree.copy(start.shared), batch_of(learner, data, np.ones(len(data)))
    kept = tree.copy(batch)
    learner.gradient(start, batch, 0)
    learner.model(start).weight[:] = 0
    assert all((a == b).all() for a, b in zip(tree.values(before), tree.values(start.shared), strict=True))
    assert all((a == b).all() for a, b in zip(tree.values(kept), tree.values(batch), strict=True))


def test_what_the_user_gave_is_not_overruled_by_the_data():
    schema = Schema(features=(4,), classes=np.array([0, 1]))
    assert LogisticLearner(classes=5).resolve(schema) == LogisticLearner(4, 5)
    assert LinearLearner(7).resolve(schema) == LinearLearner(7)
    assert LogisticLearner().resolve(Schema()) == LogisticLearner()
