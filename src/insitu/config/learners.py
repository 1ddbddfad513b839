"""The table ``[learner]``: a name, and code of the user's that a learner is made around."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from insitu.config import code, parts
from insitu.config.place import Place
from insitu.core.errors import PlanError
from insitu.names import nearest

LEARNERS = {
    "torch": ("insitu.learners.torch", "TorchLearner"),
    "sklearn": ("insitu.learners.sklearn", "SklearnLearner"),
    "estimator": ("insitu.learners.estimator", "EstimatorLearner"),
    "linear": ("insitu.learners.numpy", "LinearLearner"),
    "logistic": ("insitu.learners.numpy", "LogisticLearner"),
}
"""By name the module and the class. A learner's file may hold two, so that the file's name would not do."""

AROUND = {"torch": "module", "sklearn": "estimator", "estimator": "obj"}
"""The key that names the user's code, to which the key ``arguments`` belongs."""


def learner(table: dict[str, Any], place: Place) -> Any:
    """The learner that a table describes. PyTorch modules are made by the run, whose seed gives their first weights."""
    name, settings = parts.named(table, place)
    target = parts.target_of(name, _find, place)
    around = AROUND.get(name)
    if around is None:
        return parts.make(table, _find, place)
    given = dict(settings)
    extra = given.pop("arguments", {})
    reference = given.pop(around, None)
    # Everything else is checked first: the user's code may take long to import.
    given = parts.arguments(target, given, place, name, skip=(around, "arguments"))
    if not code.is_reference(reference):
        example = "sklearn.linear_model:SGDClassifier" if name == "sklearn" else "model.py:Net"
        if reference is None:
            raise place.error(f"{name} needs the key {around!r} (code, such as {example!r})")
        raise place.wrong(around, reference, f"expected code, such as {example!r}")
    made = _maker(reference, extra, place, around)
    if name != "torch" and isinstance(made, code.Maker):
        made = code.call(made, reference, place, around)
    return parts.built(target, {around: made, **given}, place, reference, around)


def _find(name: str) -> Any:
    if name not in LEARNERS:
        raise PlanError(f"there is no learner {name!r}{nearest(name, list(LEARNERS))}")
    module, cls = LEARNERS[name]
    return getattr(import_module(module), cls)


def _maker(reference: str, extra: Any, place: Place, key: str) -> Any:
    """What makes the user's object, or the object where the reference names one that is there already."""
    found = code.resolve(reference, place, key)
    if not isinstance(extra, dict):
        raise place.wrong("arguments", extra, "expected a table")
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        if extra:
            raise place.wrong("arguments", extra, f"{reference} is an object, not a class: leave arguments out")
        return found
    given = parts.arguments(found, extra, place.at("arguments"), reference.rpartition(":")[2])
    return code.Maker(reference, found, given)
