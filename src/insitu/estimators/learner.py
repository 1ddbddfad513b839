"""From what a user has to a learner: an estimator, a PyTorch module, an object with ``fit``, or a learner."""

from __future__ import annotations

import sys
from typing import Any, Literal

from sklearn.base import BaseEstimator, is_classifier, is_regressor

from insitu.core.errors import PlanError
from insitu.core.protocols import FitLearner, GradientLearner, Learner
from insitu.learners.estimator import EstimatorLearner
from insitu.learners.sklearn import SklearnLearner

Task = Literal["classifier", "regressor"]

LOSSES = {"classifier": "cross_entropy", "regressor": "mse"}
"""The loss of a PyTorch module by task; for another one, give a ``TorchLearner`` that has it."""


def learner_for(thing: Any, task: Task) -> Learner:
    """The learner for whatever was given as ``estimator``; PlanError where it is for another task or not known."""
    learner = _learner(thing, task)
    inner = getattr(learner, "estimator", None)
    wrong = is_regressor if task == "classifier" else is_classifier
    if isinstance(inner, BaseEstimator) and wrong(inner):
        kind, cure = ("regressor", "Regressor") if task == "classifier" else ("classifier", "Classifier")
        raise PlanError(f"estimator={inner!r} is a {kind}: use Federated{cure}")
    if isinstance(getattr(learner, "classes", None), tuple):
        raise PlanError(
            f"estimator={thing!r} has classes, and labels reach it as 0 … C-1: leave classes out, y tells them"
        )
    if learner.config().get("personal"):
        raise PlanError(
            "estimator has personal parameters, which stay with each client, and predict(X) does not say whose X is:"
            " leave personal=… out, or use insitu.run(…) and result.predict(x, client=…)"
        )
    return learner


def gives(thing: Any, method: str) -> bool:
    """Whether models made of this have ``predict_proba`` or ``decision_function``, as far as can be told untrained."""
    if is_learner(thing):
        inner = getattr(thing, "estimator", getattr(thing, "obj", None))
        return hasattr(thing, method) or hasattr(inner, method)
    if is_module(thing) or not hasattr(thing, "fit"):
        return method == "predict_proba"
    return hasattr(thing, method)


def is_own(thing: Any) -> bool:
    """Whether it is an object whose ``get_params`` gives what it learnt, and not its settings as scikit-learn's."""
    if isinstance(thing, type) or is_module(thing) or not hasattr(thing, "get_params"):
        return False
    # Asked of the method: a subclass of BaseEstimator may give arrays all the same.
    return not str(getattr(type(thing).get_params, "__module__", "")).startswith("sklearn.")


def is_learner(thing: Any) -> bool:
    """Whether it is one of insitu's learners already."""
    return not isinstance(thing, type) and isinstance(thing, (GradientLearner, FitLearner))


def is_module(thing: Any) -> bool:
    """Whether it is a PyTorch module; torch is not imported to find out, since whoever has a module has done that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.nn.Module)


def _learner(thing: Any, task: Task) -> Any:
    if is_learner(thing):
        return thing
    if not is_module(thing):
        if is_own(thing):
            return EstimatorLearner(thing)
        if isinstance(thing, BaseEstimator) or (isinstance(thing, type) and issubclass(thing, BaseEstimator)):
            return SklearnLearner(thing)
        if not callable(thing):
            raise PlanError(
                f"estimator={thing!r} is nothing that can be trained: give a scikit-learn estimator, a PyTorch module"
                " or a callable that makes one, a learner, or an object with fit, get_params and set_params"
            )
    from insitu.learners.torch import TorchLearner

    return TorchLearner(thing, loss=LOSSES[task])
