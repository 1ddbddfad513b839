"""Any object with ``fit(x, y)``, ``get_params()`` and ``set_params(params)`` on arrays, as a learner.

The form in which an object holds its parameters is part of the tree, so that a client whose object was never
fitted can take over what others learnt: ``{"array": a}``, ``{"list": {"0": a, "1": b}}``, ``{"tuple": …}`` or
``{"dict": {"coef": a, …}}``; ``{}`` before the first fit.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from insitu.core import arrays, tree
from insitu.core.errors import DataError, PlanError, UpdateError
from insitu.core.part import Part, plain
from insitu.core.types import Client, Data, Schema, Variables

_CALLS = {"fit": 2, "get_params": 0, "set_params": 1}
"""The methods an object must have, with the number of arguments that they are called with."""

_TEXT, _WHOLE = "USO", "biu"
"""The kinds of dtype of labels."""


@dataclass(frozen=True)
class EstimatorLearner(Part):
    """Local training by any object of one's own, whose parameters travel and are averaged.

    obj  has ``fit(x, y)``, ``get_params()`` and ``set_params(params)``, and ``predict(x)`` where it is to be
         evaluated; it is copied here and for each use, never changed

    The parameters are one array, or a list, tuple or dict of arrays, of floating-point numbers.
    ``get_params()`` may give None or nothing before the first fit: the first round's average then starts it.

    ``fit`` is called ``epochs`` times with all of a client's examples. ``batch_size`` does nothing, since an
    object may start afresh in ``fit``; one that draws random numbers is given its seed by its user.

    Raises PlanError where they are no such arrays, or do not come back from ``set_params`` as they were.
    """

    obj: Any
    _start: Variables = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _refuse(self.obj)
        object.__setattr__(self, "obj", copy.deepcopy(self.obj))
        start = _tree(self.obj)
        if start:
            _restore(copy.deepcopy(self.obj), start)
        object.__setattr__(self, "_start", Variables(shared=start))

    def config(self) -> dict[str, Any]:
        """The object's class, as ``module:name``; what it holds shows in the initial parameters."""
        return {"name": self.part_name(), "obj": plain(self.obj)}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """``loss``: mistakes where predictions are labels, else squared error; none without ``predict``.

        Where predictions are labels, which only the data shows, the sums have ``accuracy`` too.
        """
        return ("loss",) if self._predicts else ()

    def resolve(self, schema: Schema) -> EstimatorLearner:
        """This learner: an object of one's own brings its shape along."""
        return self

    def init(self, seed: int) -> Variables:
        """The object's own parameters, or no shared variables where it has none before its first fit."""
        return self._start

    def check(self, client: Client) -> None:
        """Raises DataError, naming the client, where x and y do not have equally many examples."""
        for data in (client.data, client.holdout):
            if data is not None and data.y is not None and len(data.y) != len(data):
                raise DataError(f"client {client.id!r} has {len(data)} examples in x, {len(data.y)} in y: give as many")

    def fit(
        self, variables: Variables, data: Data, *, epochs: int, batch_size: int | None, seed: int
    ) -> tuple[Variables, dict[str, float]]:
        """The variables after local training, and the metric sums of the fitted object on ``data``.

        Raises UpdateError where ``fit`` leaves no parameters, or some of another structure or shape.
        """
        obj = self._with(variables)
        for _ in range(epochs):
            obj.fit(data.x, data.y)
        fitted = _tree(obj)
        if not fitted:
            raise UpdateError(f"{_name(obj)}.get_params() gives nothing after fit: return the fitted arrays")
        if variables.shared and (difference := _difference(variables.shared, fitted)):
            raise UpdateError(f"{_name(obj)}.fit changes {difference}: keep it, since clients' parameters are averaged")
        return Variables(shared=fitted), self._sums(obj, data)

    def evaluate(self, variables: Variables, data: Data) -> dict[str, float]:
        """``examples``, and the sums of the metrics where the object predicts and was fitted already."""
        if not variables.shared:
            return {"examples": float(len(data))}
        return self._sums(self._with(variables), data)

    def predict(self, variables: Variables, x: Any) -> np.ndarray:
        """What the object predicts for ``x``; PlanError where it has no ``predict`` or was never fitted."""
        if not self._predicts:
            raise PlanError(f"{_name(self.obj)} has no predict(x): add it, or work with result.model()")
        if not variables.shared:
            raise PlanError(f"{_name(self.obj)} has no parameters before its first fit: run a round first")
        return arrays.asnumpy(self._with(variables).predict(x))

    def model(self, variables: Variables) -> Any:
        """A copy of the object with these parameters."""
        return self._with(variables)

    @property
    def _predicts(self) -> bool:
        return callable(getattr(self.obj, "predict", None))

    def _with(self, variables: Variables) -> Any:
        obj = copy.deepcopy(self.obj)
        if variables.shared:
            _restore(obj, variables.shared)
        return obj

    def _sums(self, obj: Any, data: Data) -> dict[str, float]:
        n = float(len(data))
        if not self._predicts or data.y is None:
            return {"examples": n}
        y, predicted = arrays.asnumpy(data.y), arrays.asnumpy(obj.predict(data.x))
        if predicted.shape != y.shape:
            raise PlanError(
                f"{_name(obj)}.predict(x) gives shape {predicted.shape} for y of shape {y.shape}: return one "
                "prediction an example, shaped as y"
            )
        if y.dtype.kind in _TEXT or (y.dtype.kind in _WHOLE and predicted.dtype.kind in _WHOLE):
            right = float(np.sum(predicted == y))
            return {"examples": n, "loss": n - right, "accuracy": right}
        squares = (predicted.astype(np.float64) - y.astype(np.float64)) ** 2
        return {"examples": n, "loss": float(squares.reshape(len(y), -1).mean(axis=1).sum())}


def _refuse(obj: Any) -> None:
    """Raises PlanError for a scikit-learn estimator, a class, or an object without the three methods."""
    if isinstance(obj, type):
        raise PlanError(f"obj={obj.__name__} is a class: give an instance, {obj.__name__}(…)")
    # Asked of the method and not of the class: one may inherit from BaseEstimator and give arrays all the
    # same. Told by its module's name, so that scikit-learn is not imported for objects unrelated to it.
    if str(getattr(getattr(type(obj), "get_params", None), "__module__", "")).startswith("sklearn."):
        raise PlanError(
            f"{_name(obj)} is a scikit-learn estimator, whose get_params gives settings, not what it learnt: "
            f"use SklearnLearner({_name(obj)}(…))"
        )
    for name, arguments in _CALLS.items():
        method = getattr(obj, name, None)
        if not callable(method):
            raise PlanError(f"{_name(obj)} has no {name}: give it fit(x, y), get_params() and set_params(params)")
        try:
            inspect.signature(method).bind(*[None] * arguments)
        except TypeError as error:
            raise PlanError(
                f"{_name(obj)}.{name} cannot be called with {arguments} arguments ({error}): it is called as "
                "fit(x, y), get_params() or set_params(params)"
            ) from error
        except ValueError:
            continue  # a method in C that does not tell its arguments: the call itself will show


def _tree(obj: Any) -> dict[str, Any]:
    """A copy of the object's parameters as a tree that says their form; PlanError if they are no arrays."""
    params = obj.get_params()
    if arrays.is_array(params):
        return {"array": _leaf(obj, params, "")}
    if params is None or (isinstance(params, (list, tuple, dict)) and not params):
        return {}
    if isinstance(params, (list, tuple)):
        kind = "list" if isinstance(params, list) else "tuple"
        return {kind: {str(i): _leaf(obj, value, f"[{i}]") for i, value in enumerate(params)}}
    if isinstance(params, dict):
        for key in params:
            if not isinstance(key, str):
                raise PlanError(f"{_name(obj)}.get_params() has the key {key!r}: make its keys text")
        return {"dict": {key: _leaf(obj, value, f"[{key!r}]") for key, value in params.items()}}
    raise PlanError(
        f"{_name(obj)}.get_params() gives a {type(params).__name__}: return an array, or a list, tuple or "
        "dict of arrays"
    )


def _leaf(obj: Any, value: Any, entry: str) -> Any:
    if not arrays.is_array(value):
        raise PlanError(
            f"{_name(obj)}.get_params(){entry} is a {type(value).__name__}, which cannot be averaged: make "
            "it an array (np.asarray(…)), or leave it out"
        )
    if not arrays.is_float(value):
        raise PlanError(
            f"{_name(obj)}.get_params(){entry} holds {value.dtype}, whose average would be no {value.dtype}: "
            "make it floating-point (astype(float)), or leave it out"
        )
    return arrays.copy(value)


def _restore(obj: Any, shared: Any) -> None:
    """Sets the object's parameters from a tree; PlanError where ``get_params`` then has another structure."""
    ((kind, content),) = shared.items()
    params = tree.map(arrays.copy, content)
    if kind in ("list", "tuple"):
        params = [params[str(i)] for i in range(len(params))]  # by number: a tree's keys may come in any order
    obj.set_params(tuple(params) if kind == "tuple" else params)
    if difference := _difference(shared, _tree(obj)):
        raise PlanError(
            f"{_name(obj)}: set_params followed by get_params changes {difference}: let set_params take "
            "exactly what get_params gives"
        )


def _difference(before: Any, after: Any) -> str | None:
    """How two trees of parameters differ in form, names or shapes, in words; None where they do not."""
    if before.keys() != after.keys():
        return f"{_form(before)} into {_form(after)}"
    ((_, old),), ((_, new),) = before.items(), after.items()
    old, new = (part if isinstance(part, dict) else {"": part} for part in (old, new))
    if old.keys() != new.keys():
        return f"the entries {tree.describe(old)} into {tree.describe(new)}"
    for key in old:
        shapes = tuple(old[key].shape), tuple(new[key].shape)
        if shapes[0] != shapes[1]:
            return f"the shape of {f'entry {key!r}' if key else 'the array'} from {shapes[0]} to {shapes[1]}"
    return None


def _form(params: Any) -> str:
    return f"its {next(iter(params))} of parameters" if params else "nothing"


def _name(obj: Any) -> str:
    return type(obj).__name__
