"""scikit-learn estimators that predict from coefficients; larger because estimators differ in details.

What differs between estimators is in the functions below the class, each with the reason.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline

from insitu.core import arrays, checks
from insitu.core.errors import DataError, PlanError, UpdateError
from insitu.core.part import Part, plain
from insitu.core.types import Client, Data, Schema, Variables
from insitu.learners.numpy import feature_rows, features_of, known_labels, label_array, label_codes

_SUPPORTED = "coef_ and intercept_ (linear models), or coefs_ and intercepts_ (multi-layer perceptrons)"
_CURE = (
    "use a linear model such as SGDClassifier or LogisticRegression, an MLP, or, with EstimatorLearner, an "
    "object of your own whose get_params and set_params carry arrays that can be averaged"
)

_NEXT_TO_NOTHING = 1e-12
"""The weight of an example that stands in for a class its client lacks. Zero would do for most, but
liblinear drops examples of weight zero, and silently gives a model of fewer classes, signs turned."""

_STAND_STILL = {
    "solver": "sgd",
    "learning_rate": "constant",
    "learning_rate_init": 1e-300,
    "batch_size": "auto",
    "early_stopping": False,
    "warm_start": False,
}
"""How an MLP is made without training it: the rate must be above zero, and this one changes no float64."""


@dataclass(frozen=True)
class SklearnLearner(Part):
    """Local training by a scikit-learn classifier or regressor, whose coefficients travel and are averaged.

    estimator  an instance, such as ``SGDClassifier(loss="log_loss")``; it is cloned, never changed
    classes    C for the labels 0 … C-1, or every label that any client can have; None: out of the data
    features   numbers in one example (``x`` is flattened to [n, F], float64); None: out of the data

    Supported are estimators that predict from ``coef_`` and ``intercept_``, or from ``coefs_`` and
    ``intercepts_``, alone; ``init`` tries that out and raises PlanError for others.

    - With ``partial_fit``, a client does ``epochs`` passes over seeded shuffled batches (``batch_size=None``:
      one call of ``partial_fit`` a pass). Optimisers start anew each round; a learning rate that falls goes
      on falling, by the step count ``t_`` in ``buffers``.
    - Without, it calls ``fit`` once on all its data, from the global coefficients where the estimator has
      ``warm_start``; its ``max_iter`` says how far, and ``epochs`` and ``batch_size`` do nothing. Without
      warm start every round fits the same again: one round is one-shot averaging, and enough.
    - ``random_state`` is replaced by one made from ``seed``.
    """

    estimator: Any
    classes: Any = None
    features: int | None = None
    _made: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Fitted templates by seed, made when first asked for."""

    def __post_init__(self) -> None:
        _refuse(self.estimator)
        object.__setattr__(self, "estimator", clone(self.estimator))
        object.__setattr__(self, "classes", known_labels(self.classes))
        if self.features is not None:
            object.__setattr__(self, "features", checks.count(features=self.features))
        if self.classes is not None and not self._classifies:
            raise PlanError(f"classes={self.classes!r} for the regressor {self.estimator!r}: leave classes out")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}  # templates are quickly made and need not travel

    @property
    def metric_names(self) -> tuple[str, ...]:
        """``loss`` (log loss, 0/1 loss without ``predict_proba``, or squared error), and ``accuracy``."""
        return ("loss", "accuracy") if self._classifies else ("loss",)

    def config(self) -> dict[str, Any]:
        """The estimator's class and parameters, ``classes`` and ``features``."""
        return {
            "name": self.part_name(),
            "estimator": plain(type(self.estimator)),
            "params": plain(self.estimator.get_params(deep=False)),
            "classes": plain(self.classes),
            "features": self.features,
        }

    def resolve(self, schema: Schema) -> SklearnLearner:
        """This learner with ``features`` and ``classes`` out of the data, where they were left open."""
        features = features_of(schema) if self.features is None else self.features
        is_open = self._classifies and self.classes is None
        return replace(self, features=features, classes=schema.classes if is_open else self.classes)

    def init(self, seed: int) -> Variables:
        """Zero coefficients for linear models, the seeded random start for MLPs.

        Raises PlanError where ``features`` or ``classes`` are unknown, or the estimator is not supported.
        """
        template = self._template(seed if _is_mlp(self.estimator) else 0)
        return Variables(shared=_shared(template), buffers=_clock(template))

    def check(self, client: Client) -> None:
        """Raises DataError, naming the client, where its data cannot be learnt from."""
        where = f"client {client.id!r}"
        _, y = self._columns(client.data, where)
        if client.holdout is not None:
            self._columns(client.holdout, f"{where} (held out)")
        missing = [] if self._incremental else self._missing(y)
        if missing and "sample_weight" not in signature(self.estimator.fit).parameters:
            raise DataError(
                f"{where} has no example of class {missing[0]!r}, and {type(self.estimator).__name__}.fit "
                "takes no sample_weight, so none can stand in: leave the client out, or use SGDClassifier"
            )

    def fit(
        self, variables: Variables, data: Data, *, epochs: int, batch_size: int | None, seed: int
    ) -> tuple[Variables, dict[str, float]]:
        """The variables after local training, and the metric sums of the fitted model on ``data``.

        Raises UpdateError where the estimator's coefficients do not have the size that the plan's have.
        """
        x, y = self._columns(data, "the data to fit")
        estimator = self.model(variables)
        _set(estimator, random_state=_random_state(seed), warm_start=not self._incremental)
        with warnings.catch_warnings():
            # A few iterations a round is how federated learning works: an optimum not reached is no news.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if self._incremental:
                _fit_in_batches(estimator, x, y, epochs, batch_size, seed)
            else:
                _fit_at_once(estimator, x, y, self._missing(y))
        # By way of the template, since some estimators give coefficients as [F] or [1, F], as it happens.
        template = copy.deepcopy(self._template())
        _put(template, _shared(estimator))
        fitted = Variables(shared=_shared(template), buffers=_clock(estimator))
        return fitted, self.evaluate(fitted, data)

    def evaluate(self, variables: Variables, data: Data) -> dict[str, float]:
        """``examples`` and the sum of each metric over all examples."""
        x, y = self._columns(data, "the data to evaluate on")
        estimator = self.model(variables)
        n, predicted = float(len(x)), estimator.predict(x)
        if not self._classifies:
            return {"examples": n, "loss": float(np.sum((predicted - y) ** 2))}
        right = float(np.sum(predicted == y))
        if not hasattr(estimator, "predict_proba"):
            return {"examples": n, "loss": n - right, "accuracy": right}
        p = estimator.predict_proba(x)[np.arange(len(x)), np.searchsorted(label_array(self.classes), y)]
        losses = -np.log(np.maximum(p, np.finfo(p.dtype).eps))  # never infinite, as in sklearn.metrics.log_loss
        return {"examples": n, "loss": float(np.sum(losses)), "accuracy": right}

    def predict(self, variables: Variables, x: Any) -> np.ndarray:
        """Labels, or values, of the examples ``x`` [n, …]: [n]."""
        rows = feature_rows(x, self.features, "the data to predict")
        return np.asarray(self.model(variables).predict(rows))

    def model(self, variables: Variables) -> BaseEstimator:
        """A fitted scikit-learn estimator with the user's parameters, which predicts rows [n, F].

        Fitted attributes that take no part in predicting (``n_iter_``, ``loss_curve_``) say nothing.
        """
        estimator = copy.deepcopy(self._template())
        _put(estimator, variables.shared)
        if "t_" in variables.buffers:
            estimator.t_ = type(estimator.t_)(arrays.asnumpy(variables.buffers["t_"])[0])
        return estimator

    @property
    def _classifies(self) -> bool:
        return is_classifier(self.estimator)

    @property
    def _incremental(self) -> bool:
        return hasattr(self.estimator, "partial_fit")

    def _labels(self) -> np.ndarray | None:
        return label_array(self.classes) if self._classifies else None

    def _missing(self, y: np.ndarray) -> list[Any]:
        return np.setdiff1d(label_array(self.classes), y).tolist() if self._classifies else []

    def _columns(self, data: Data, where: str) -> tuple[np.ndarray, np.ndarray]:
        """x [n, F] and y [n], labels in the type of the classes; DataError where they are no such thing."""
        self._check_known()
        x, y = feature_rows(data.x, self.features, where), arrays.asnumpy(data.y)
        if self._classifies:
            return x, label_array(self.classes)[label_codes(y, self.classes, where)]
        if y.ndim != 1 or y.dtype.kind not in "fiub":
            raise DataError(f"{where} has y of type {y.dtype} in shape {y.shape}: give numbers in shape [n]")
        return x, y.astype(np.float64)

    def _check_known(self) -> None:
        for name in ("features", "classes") if self._classifies else ("features",):
            if getattr(self, name) is None:
                raise PlanError(
                    f"SklearnLearner({type(self.estimator).__name__}) has {name}=None and the data does not "
                    f"tell: give {name}="
                )

    def _template(self, seed: int = 0) -> Any:
        """A fitted estimator with all classes and the coefficients of ``init(seed)``."""
        if seed not in self._made:
            self._check_known()
            if not self._made:
                _try_out(self.estimator, self._labels())
            self._made[seed] = _start(self.estimator, self._labels(), self.features or 0, seed)
        return self._made[seed]


def _refuse(estimator: Any) -> None:
    """Raises PlanError for what cannot be averaged, as far as that can be seen without fitting it."""
    if isinstance(estimator, type):
        raise PlanError(f"estimator={estimator.__name__} is a class: give an instance, {estimator.__name__}(…)")
    if not isinstance(estimator, BaseEstimator):
        raise PlanError(f"estimator={estimator!r} is no scikit-learn estimator: use EstimatorLearner for it")
    if isinstance(estimator, Pipeline):
        raise PlanError(
            f"{estimator!r} would fit its first steps on each client apart: preprocess the data before, and "
            "give the last step alone"
        )
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise PlanError(f"{estimator!r} is neither classifier nor regressor: {_CURE}")
    params = estimator.get_params(deep=False)
    if params.get("class_weight") == "balanced":
        raise PlanError(f"class_weight='balanced' of {estimator!r} would differ by client: give {{label: weight}}")
    if params.get("average"):
        raise PlanError(
            f"average={params['average']!r} of {estimator!r} keeps a second set of coefficients: leave it "
            "out, since the server averages"
        )
    if params.get("early_stopping") and hasattr(estimator, "partial_fit"):
        raise PlanError(f"early_stopping=True of {estimator!r} cannot go with partial_fit: leave it out")


def _try_out(estimator: Any, labels: np.ndarray | None) -> None:
    """Raises PlanError unless coefficients put into another fitted estimator bring its predictions along."""
    if _is_mlp(estimator):
        return
    name = type(estimator).__name__
    try:
        one, two = (_tried(estimator, *_few_rows(labels, 3, seed)) for seed in (0, 1))
    except (ValueError, TypeError) as error:
        raise PlanError(f"{estimator!r} cannot be fitted to a few random rows ({error}): {_CURE}") from error
    if not all(hasattr(one, attribute) for attribute in _names(one)):
        state = ", ".join(a for a in vars(one) if a.endswith("_") and not a.startswith("_"))
        raise PlanError(f"{name} keeps what it learns in {state}, not in {_SUPPORTED}: {_CURE}")
    try:
        _put(one, _shared(two))
    except (AttributeError, UpdateError) as error:
        raise PlanError(f"{name} does not let its coefficients be set ({error}): {_CURE}") from error
    x, _ = _few_rows(labels, 3, 2)
    if not np.allclose(_outputs(one, x), _outputs(two, x)):
        raise PlanError(f"{name} predicts from more than its coefficients, which are what is averaged: {_CURE}")


def _tried(estimator: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """A clone after a short fit."""
    estimator = clone(estimator)
    _set(estimator, max_iter=5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five iterations on noise may warn of anything
        _first_fit(estimator, x, y)
    return estimator


def _few_rows(labels: np.ndarray | None, features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random x [n, F] and y [n], both positive, as some estimators ask for; five rows of every class."""
    random = np.random.Generator(np.random.PCG64(seed))
    y = 1 + random.random(15) if labels is None else np.repeat(labels, 5)
    return random.random((len(y), features)), y


def _start(estimator: Any, labels: np.ndarray | None, features: int, seed: int) -> Any:
    """A clone that was fitted, so that it has every attribute, and then taken back to its start."""
    started = clone(estimator)
    if _is_mlp(started):
        started.set_params(**_STAND_STILL, random_state=_random_state(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        _first_fit(started, *_few_rows(labels, features, 0))
    started.set_params(**estimator.get_params(deep=False))
    if _is_mlp(started):
        del started._optimizer  # each client's fit makes its own, for its own arrays and with moments at zero
        started.t_, started.best_loss_, started.loss_curve_ = 0, np.inf, []
        return started
    for name in _names(started):
        setattr(started, name, getattr(started, name) * 0.0)
    if hasattr(started, "t_"):
        started.t_ = 1.0
    return started


def _first_fit(estimator: Any, x: np.ndarray, y: np.ndarray) -> None:
    """The first fit of an estimator, to data with all classes."""
    if not hasattr(estimator, "partial_fit"):
        estimator.fit(x, y)
    elif is_classifier(estimator):
        estimator.partial_fit(x, y, classes=np.unique(y))
    else:
        estimator.partial_fit(x, y)


def _fit_in_batches(
    estimator: Any, x: np.ndarray, y: np.ndarray, epochs: int, batch_size: int | None, seed: int
) -> None:
    """``epochs`` passes of ``partial_fit`` over seeded shuffled batches, the last, partial one included."""
    random = np.random.Generator(np.random.PCG64(seed))
    size = len(x) if batch_size is None else batch_size
    for _ in range(epochs):
        order = np.arange(len(x)) if batch_size is None else random.permutation(len(x))
        for start in range(0, len(x), size):
            index = order[start : start + size]
            if _is_mlp(estimator):
                # MLPs cut what they get into batches again, and warn where one is larger than that.
                own = estimator.batch_size
                whole = batch_size is not None or (own != "auto" and own > len(index))
                estimator.set_params(batch_size=len(index) if whole else own)
            estimator.partial_fit(x[index], y[index])


def _fit_at_once(estimator: Any, x: np.ndarray, y: np.ndarray, missing: list[Any]) -> None:
    """``fit`` on all data, with a stand-in of hardly any weight for each class that is missing."""
    if not missing:
        estimator.fit(x, y)
        return
    weight = np.concatenate([np.ones(len(x)), np.full(len(missing), _NEXT_TO_NOTHING)])
    x = np.concatenate([x, np.repeat(x[:1], len(missing), axis=0)])
    estimator.fit(x, np.concatenate([y, np.array(missing)]), sample_weight=weight)


def _is_mlp(estimator: Any) -> bool:
    return isinstance(estimator, (MLPClassifier, MLPRegressor))


def _random_state(seed: int) -> np.random.RandomState:
    """A state, not a number, which would shuffle every pass alike."""
    return np.random.RandomState(np.random.MT19937(seed))


def _set(estimator: Any, **params: Any) -> None:
    """Sets those parameters that the estimator has."""
    known = estimator.get_params(deep=False)
    estimator.set_params(**{name: value for name, value in params.items() if name in known})


def _outputs(estimator: Any, x: np.ndarray) -> np.ndarray:
    return estimator.decision_function(x) if hasattr(estimator, "decision_function") else estimator.predict(x)


def _names(estimator: Any) -> tuple[str, ...]:
    """The attributes that are averaged. An intercept that is not fitted stays out: noise would change it."""
    if _is_mlp(estimator):
        return ("coefs_", "intercepts_")
    return ("coef_", "intercept_") if getattr(estimator, "fit_intercept", True) else ("coef_",)


def _shared(estimator: Any) -> dict[str, Any]:
    """The coefficients as a tree: arrays of at least one dimension; for MLPs ``{"0": …}`` by layer."""
    shared = {}
    for name in _names(estimator):
        value = getattr(estimator, name)
        if isinstance(value, list):
            shared[name] = {str(i): np.array(layer) for i, layer in enumerate(value)}
        else:
            shared[name] = np.array(np.atleast_1d(value), dtype=np.float64)
    return shared


def _put(estimator: Any, shared: Any) -> None:
    """Sets the coefficients of a fitted estimator, in the shapes that it has."""
    for name in _names(estimator):
        value, old = shared[name], getattr(estimator, name)
        if isinstance(old, list):
            value = [_shaped(value[str(i)], each, f"{name}[{i}]") for i, each in enumerate(old)]
        else:
            value = _shaped(value, old, name)
        setattr(estimator, name, value)


def _shaped(value: Any, old: Any, name: str) -> Any:
    """A float64 copy in the shape of ``old``, a number if that is one; UpdateError if sizes differ."""
    value = np.array(arrays.asnumpy(value), dtype=np.float64, order="C")
    if value.size != np.size(old):
        raise UpdateError(
            f"{name} has shape {value.shape} and the model's has {np.shape(old)}: use an estimator that "
            "gives one shape on all data"
        )
    return value.reshape(np.shape(old))[()]


def _clock(estimator: Any) -> dict[str, Any]:
    """The count of steps where the learning rate falls with it, so that it goes on falling all run long."""
    falls = getattr(estimator, "learning_rate", None) in ("optimal", "invscaling")
    return {"t_": np.array([float(estimator.t_)])} if falls and hasattr(estimator, "t_") else {}
