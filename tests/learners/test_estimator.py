"""EstimatorLearner around objects of one's own: what their parameters may be, and what is refused and why."""

from __future__ import annotations

import json
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from insitu.core import tree
from insitu.core.errors import DataError, PlanError, UpdateError
from insitu.core.protocols import FitLearner, GradientLearner
from insitu.core.types import Client, Data, Schema, Variables
from insitu.learners.estimator import EstimatorLearner

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(30, 3))
LINE = Data(X, X @ [1.0, -2.0, 0.5] + 3)
SIDES = Data(X, (X[:, 0] > 0).astype(int))
FORMS = {
    "array": lambda w, b: np.append(w, b),
    "list": lambda w, b: [w, np.array([b])],
    "tuple": lambda w, b: (w, np.array([b])),
    "dict": lambda w, b: {"w": w, "b": np.array([b])},
    "numbers": lambda w, b: [w, np.float64(b)],
}


class Line:
    """Least squares in closed form; no parameters before the first fit, and then in one of the forms."""

    def __init__(self, form: str = "dict", empty: object = None) -> None:
        self.form, self.params, self.fits = form, empty, 0

    def fit(self, x, y):
        self.fits += 1
        solution = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
        self.params = FORMS[self.form](solution[:-1], solution[-1])

    def get_params(self):
        return self.params

    def set_params(self, params):
        self.params = params

    def predict(self, x):
        parts = self.params
        if self.form == "array":
            return x @ parts[:-1] + parts[-1]
        w, b = parts.values() if self.form == "dict" else parts
        return x @ w + b


class Side(Line):
    """Labels 0 and 1, on the two sides of a line."""

    def predict(self, x):
        return (super().predict(x) > 0.5).astype(int)


class Sum:
    """A running mean, whose fit goes on from where it was; it predicts nothing."""

    def __init__(self) -> None:
        self.mean = np.zeros(2)

    def fit(self, x, y):
        assert y is None
        self.mean = 0.5 * self.mean + 0.5 * x.mean(axis=0)

    def get_params(self):
        return self.mean

    def set_params(self, params):
        self.mean = params


def having(params, **methods) -> Line:
    """A Line with these parameters, of a class with these methods."""
    obj = type("Odd", (Line,), methods)()
    obj.params = params
    return obj


def fit(learner: EstimatorLearner, variables: Variables, data: Data, epochs: int = 1):
    return learner.fit(variables, data, epochs=epochs, batch_size=4, seed=0)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_of_every_form_are_learnt_averaged_and_set(form):
    learner = EstimatorLearner(Line(form))
    halves = [LINE.take(slice(0, 15)), Data(X[15:], LINE.y[15:] + 1)]
    fits = [fit(learner, learner.init(0), half)[0].shared for half in halves]
    mean = Variables(shared=tree.scale(tree.add(*fits), 0.5))
    # Two lines that differ by 1 in height: the mean of their parameters lies half-way.
    np.testing.assert_allclose(learner.predict(mean, X), LINE.y + 0.5)
    model = learner.model(mean)
    assert isinstance(model, Line)
    assert type(model.params) is type(FORMS[form](X[0], 1.0))
    again, sums = fit(learner, mean, LINE)
    assert tree.describe(again.shared) == tree.describe(mean.shared)
    assert sums == pytest.approx({"examples": 30, "loss": 0}, abs=1e-20)


@pytest.mark.parametrize("empty", [None, {}, [], ()], ids=repr)
def test_an_object_without_parameters_starts_with_the_first_average(empty):
    learner = EstimatorLearner(Line("dict", empty))
    start = learner.init(0)
    assert start == Variables()
    assert learner.evaluate(start, LINE) == {"examples": 30.0}
    with pytest.raises(PlanError, match="Line has no parameters before its first fit: run a round"):
        learner.predict(start, X)
    fitted, _ = fit(learner, start, LINE)
    assert fitted.shared.keys() == {"dict"}
    np.testing.assert_allclose(learner.predict(fitted, X), LINE.y)


def test_the_order_of_a_trees_keys_does_not_matter():
    learner = EstimatorLearner(having([np.full(n, float(n)) for n in range(1, 13)]))
    start = learner.init(0)
    shuffled = {"list": {key: start.shared["list"][key] for key in sorted(start.shared["list"])}}
    assert list(shuffled["list"])[:3] == ["0", "1", "10"]
    assert [len(p) for p in learner.model(Variables(shared=shuffled)).params] == list(range(1, 13))


def test_the_users_object_and_the_variables_are_never_changed():
    obj = Line("dict")
    obj.fit(X, LINE.y)
    learner = EstimatorLearner(obj)
    start = learner.init(0)
    before = tree.copy(start.shared)
    fit(learner, start, Data(X, -LINE.y), epochs=3)
    learner.model(start).params["w"][:] = 0
    assert obj.fits == 1
    obj.params["w"][:] = 7  # nor does the learner change with the object
    for kept in (start, learner.init(1)):
        np.testing.assert_array_equal(kept.shared["dict"]["w"], before["dict"]["w"])


def test_fit_is_called_once_an_epoch_with_all_examples():
    learner = EstimatorLearner(Sum())
    data = Data(np.array([[1.0, 2.0], [3.0, 6.0]]))
    fitted, sums = fit(learner, learner.init(0), data, epochs=2)
    np.testing.assert_allclose(fitted.shared["array"], [0.75 * 2, 0.75 * 4])
    assert sums == {"examples": 2.0}
    assert learner.metric_names == ()
    with pytest.raises(PlanError, match=r"Sum has no predict\(x\): add it"):
        learner.predict(fitted, data.x)


def test_labels_are_counted_and_values_are_squared():
    side, line = EstimatorLearner(Side("array")), EstimatorLearner(Line("array"))
    at = Variables(shared={"array": np.array([1.0, 0, 0, 0.5])})
    noisy = Data(X, np.where(np.arange(30) < 3, 1 - SIDES.y, SIDES.y))
    assert side.evaluate(at, noisy) == {"examples": 30.0, "loss": 3.0, "accuracy": 27.0}
    expected = np.sum((X[:, 0] + 0.5 - noisy.y) ** 2)
    assert line.evaluate(at, noisy) == pytest.approx({"examples": 30.0, "loss": expected})
    words = having(np.zeros(1), predict=lambda self, x: np.array(["a", "b"])[(x[:, 0] > 0).astype(int)])
    sums = EstimatorLearner(words).evaluate(EstimatorLearner(words).init(0), Data(X, np.full(30, "b")))
    assert sums["accuracy"] == np.sum(X[:, 0] > 0) == 30 - sums["loss"]


def test_several_outputs_count_as_their_mean():
    learner = EstimatorLearner(having(np.zeros(1), predict=lambda self, x: x))
    sums = learner.evaluate(learner.init(0), Data(X, X + np.array([0.0, 0.0, 3.0])))
    assert sums == pytest.approx({"examples": 30.0, "loss": 30 * 3.0})


def test_learners_keep_the_protocol_and_travel():
    learner = EstimatorLearner(Line())
    assert isinstance(learner, FitLearner)
    assert not isinstance(learner, GradientLearner)
    assert learner.resolve(Schema(features=(3,))) is learner
    assert json.loads(json.dumps(learner.config())) == {"name": "estimator", "obj": f"{__name__}:Line"}
    one, _ = fit(cloudpickle.loads(cloudpickle.dumps(learner)), learner.init(0), LINE)
    two, _ = fit(learner, learner.init(0), LINE)
    np.testing.assert_array_equal(one.shared["dict"]["w"], two.shared["dict"]["w"])
    learner.check(Client("a", LINE, Data(X)))
    with pytest.raises(DataError, match="client 'a' has 30 examples in x, 29 in y"):
        learner.check(Client("a", Data(X, LINE.y[:-1])))


@pytest.mark.parametrize("obj", [Ridge(), make_pipeline(Ridge())], ids=["estimator", "pipeline"])
def test_scikit_learn_estimators_are_refused_with_the_reason(obj):
    with pytest.raises(PlanError, match=r"scikit-learn estimator, whose get_params gives settings.*SklearnLearner"):
        EstimatorLearner(obj)


def test_a_scikit_learn_class_with_parameters_of_its_own_is_welcome():
    class Mine(Line, BaseEstimator):
        pass

    learner = EstimatorLearner(Mine())
    fitted, _ = fit(learner, learner.init(0), LINE)
    np.testing.assert_allclose(learner.predict(fitted, X), LINE.y)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (Line, r"obj=Line is a class: give an instance, Line\(…\)"),
        (object(), r"object has no fit: give it fit\(x, y\), get_params\(\)"),
        (
            having(None, set_params=lambda self, **params: self),
            r"Odd.set_params cannot be called with 1 arguments",
        ),
        (having(None, fit=lambda self, data: self), r"Odd.fit cannot be called with 2 arguments"),
        (having({"w": [1.0, 2.0]}), r"Odd.get_params\(\)\['w'\] is a list, .*np.asarray"),
        (having([np.zeros(2), 0.5]), r"Odd.get_params\(\)\[1\] is a float, which cannot be averaged"),
        (having({"n": np.array([3])}), r"Odd.get_params\(\)\['n'\] holds int64, .*astype\(float\)"),
        (having({"names": np.array(["a"])}), r"\['names'\] holds <U1"),
        (having({0: np.zeros(2)}), r"the key 0: make its keys text"),
        (having("weights"), r"get_params\(\) gives a str: return an array"),
        (
            having([np.zeros(2)], set_params=lambda self, params: setattr(self, "params", tuple(params))),
            r"set_params followed by get_params changes its list of parameters into its tuple of parameters",
        ),
        (
            having({"w": np.zeros(2)}, set_params=lambda self, params: self.params.update(v=params["w"])),
            r"changes the entries \{w\} into \{w, v\}",
        ),
        (
            having({"w": np.zeros(2)}, set_params=lambda self, params: setattr(self, "params", None)),
            r"changes its dict of parameters into nothing",
        ),
        (
            having(np.zeros(2), set_params=lambda self, params: setattr(self, "params", params[None])),
            r"changes the shape of the array from \(2,\) to \(1, 2\): let set_params take exactly",
        ),
    ],
)
def test_objects_that_do_not_give_back_what_they_take_are_refused(obj, message):
    with pytest.raises(PlanError, match=message):
        EstimatorLearner(obj)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (None, r"Odd.get_params\(\) gives nothing after fit"),
        ({"w": np.zeros(3)}, r"Odd.fit changes the shape of entry 'w' from \(2,\) to \(3,\)"),
        ({"v": np.zeros(2)}, r"Odd.fit changes the entries \{w\} into \{v\}"),
        ([np.zeros(2)], r"Odd.fit changes its dict of parameters into its list of parameters"),
    ],
)
def test_a_fit_that_changes_the_structure_is_refused(after, message):
    obj = having({"w": np.zeros(2)}, fit=lambda self, x, y: setattr(self, "params", after))
    learner = EstimatorLearner(obj)
    with pytest.raises(UpdateError, match=message):
        fit(learner, learner.init(0), LINE)


def test_predictions_must_have_the_shape_of_the_targets():
    learner = EstimatorLearner(having(np.zeros(2), predict=lambda self, x: np.zeros((len(x), 1))))
    with pytest.raises(PlanError, match=r"Odd.predict\(x\) gives shape \(30, 1\) for y of shape \(30,\)"):
        learner.evaluate(learner.init(0), LINE)


def test_torch_tensors_are_parameters_too():
    torch = pytest.importorskip("torch")

    class Scale(Line):
        def fit(self, x, y):
            self.params = {"s": torch.tensor([2.0])}

    learner = EstimatorLearner(Scale())
    fitted, _ = learner.fit(learner.init(0), Data(X), epochs=1, batch_size=None, seed=0)
    assert isinstance(learner.model(fitted).params["s"], torch.Tensor)


def test_scikit_learn_is_not_imported_for_objects_that_are_not_of_it():
    code = """
import sys, numpy
from insitu.learners.estimator import EstimatorLearner
class Own:
    def fit(self, x, y): pass
    def get_params(self): return numpy.zeros(2)
    def set_params(self, params): pass
EstimatorLearner(Own())
assert "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
