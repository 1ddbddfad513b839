"""Linear and softmax regression in NumPy; larger because it also holds how learners read labels and features.

Both are a linear map with a loss on top, so :class:`_Affine` holds what they share.
Shapes: B examples of a batch, n examples of a data set, F features, K outputs or classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from insitu.core import arrays, checks
from insitu.core.errors import DataError, PlanError
from insitu.core.part import Part
from insitu.core.protocols import Batch
from insitu.core.types import Client, Data, Schema, Variables

Losses = tuple[dict[str, np.ndarray], np.ndarray]
"""Metrics of each example ``{name: [B]}``, and the slope of its loss in its scores [B, K]."""

_ROWS = 8192
"""Examples scored at a time in evaluation, so that a cast copy of a large data set is never made whole."""


def known_labels(classes: Any) -> int | tuple[Any, ...] | None:
    """``classes`` in one form: C for the labels 0 … C-1, else the sorted distinct labels; None stays None.

    Raises PlanError for fewer than two classes and for labels that have no common order.
    """
    if classes is None:
        return None
    if isinstance(classes, (int, np.integer)) and not isinstance(classes, bool):
        labels = np.arange(checks.count(classes=classes))
    else:
        try:
            labels = np.unique(np.asarray(classes))
        except TypeError as error:
            raise PlanError(
                f"Expected classes={classes!r} to be labels of one type: make them all text or all numbers"
            ) from error
    if len(labels) < 2:
        raise PlanError(
            f"Expected classes={classes!r} to hold at least two labels: give classes= with every label "
            "that any client can have"
        )
    if labels.dtype.kind in "iu" and np.array_equal(labels, np.arange(len(labels))):
        return len(labels)
    return tuple(labels.tolist())


def label_array(classes: int | tuple[Any, ...]) -> np.ndarray:
    """The labels [C] of :func:`known_labels`, sorted: the label of code c is at place c."""
    return np.arange(classes) if isinstance(classes, int) else np.array(classes)


def label_codes(y: Any, classes: int | tuple[Any, ...], where: str) -> np.ndarray:
    """The code 0 … C-1 of each label of ``y`` [n]; DataError names ``where`` and a stray label."""
    y = arrays.asnumpy(y)
    labels = label_array(classes)
    text = labels.dtype.kind == "U"
    if y.ndim != 1:
        raise DataError(f"{where} has y in shape {y.shape}: give one label an example, shape [n]")
    if y.dtype.kind == "O" and text:
        y = y.astype(str)
    if (y.dtype.kind == "U") != text or y.dtype.kind == "O":
        raise DataError(
            f"{where} has labels of type {y.dtype}, and the classes are {_span(labels)}: give both one type"
        )
    codes = np.minimum(np.searchsorted(labels, y), len(labels) - 1)
    stray = labels[codes] != y
    if stray.any():
        raise DataError(
            f"{where} has the label {y[stray][0].item()!r}, which is none of the {len(labels)} classes "
            f"{_span(labels)}: give classes= with every label that any client can have"
        )
    return codes


def _span(labels: np.ndarray) -> str:
    shown = [repr(label) for label in labels.tolist()]
    return ", ".join(shown) if len(shown) <= 4 else f"{shown[0]}, {shown[1]}, …, {shown[-1]}"


def feature_rows(x: Any, features: int | None, where: str, dtype: Any = np.float64) -> np.ndarray:
    """``x`` [n, …] as a matrix [n, F]; DataError where it is no numeric array or F is not ``features``."""
    if isinstance(x, dict):
        raise DataError(f"{where} has x as a dict of columns {sorted(x)}: stack them into one array [n, F]")
    x = arrays.asnumpy(x)
    try:
        matrix = np.asarray(x, dtype=dtype).reshape(len(x), math.prod(x.shape[1:]))
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} has x of type {x.dtype}: encode it as numbers ({error})") from error
    if features is not None and matrix.shape[1] != features:
        raise DataError(
            f"{where} has {matrix.shape[1]} features an example, and the learner has features={features}: "
            "give every client the same columns"
        )
    return matrix


def features_of(schema: Schema) -> int | None:
    """How many numbers one example has, or None where the schema does not know."""
    return None if schema.features is None else math.prod(schema.features)


@dataclass(frozen=True)
class LinearModel:
    """Trained linear map: ``weight`` [K, F], ``bias`` [K]; ``squeeze``: its one output comes as [n]."""

    weight: np.ndarray
    bias: np.ndarray
    squeeze: bool = True

    def predict(self, x: Any) -> np.ndarray:
        """The outputs for ``x`` [n, …]: [n], or [n, K] where the learner was told ``outputs``."""
        scores = _scores(self, x)
        return scores[:, 0] if self.squeeze else scores


@dataclass(frozen=True)
class LogisticModel:
    """Trained softmax regression: ``weight`` [K, F], ``bias`` [K] and the ``classes`` [K] it tells apart."""

    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray

    def predict(self, x: Any) -> np.ndarray:
        """The most likely label of each example [n]."""
        return self.classes[_scores(self, x).argmax(axis=1)]

    def predict_proba(self, x: Any) -> np.ndarray:
        """The probability of each class [n, K], in the order of ``classes``."""
        return np.exp(_log_softmax(_scores(self, x)))


def _scores(model: LinearModel | LogisticModel, x: Any) -> np.ndarray:
    rows = feature_rows(x, model.weight.shape[1], "the data to predict", model.weight.dtype)
    return rows @ model.weight.T + model.bias


def _log_softmax(scores_BK: np.ndarray) -> np.ndarray:
    shifted = scores_BK - scores_BK.max(axis=1, keepdims=True)  # exp of a large score would overflow
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class _Affine(Part, ABC):
    """scores = x Wᵀ + b, with ``shared = {"weight": W [K, F], "bias": b [K]}`` as in ``torch.nn.Linear``."""

    mixes: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]]
    features: int | None
    l2: float
    dtype: str

    @classmethod
    def part_name(cls) -> str:
        """``module:class``, since this file holds two learners."""
        return f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def _width(self) -> int:
        """K; PlanError where it is not known."""

    @abstractmethod
    def _targets(self, y: Any, where: str) -> np.ndarray:
        """What ``_losses`` compares scores with, codes [n] or values [n, K]; DataError for another ``y``."""

    @abstractmethod
    def _losses(self, scores_BK: np.ndarray, targets: np.ndarray) -> Losses:
        """The metrics of each example, and the slope of its loss in its scores."""

    @abstractmethod
    def model(self, variables: Variables) -> LinearModel | LogisticModel:
        """The trained map in its own right."""

    def predict(self, variables: Variables, x: Any) -> np.ndarray:
        """Labels [n], or values [n] ([n, K] where ``outputs`` is given), of the examples ``x`` [n, …]."""
        return self.model(variables).predict(x)

    def __post_init__(self) -> None:
        if self.features is not None:
            object.__setattr__(self, "features", checks.count(features=self.features))
        checks.not_negative(l2=self.l2)
        checks.one_of(("float32", "float64"), dtype=self.dtype)

    def init(self, seed: int) -> Variables:
        """Zeros, whatever the seed: both problems are convex. PlanError where the shape is not known."""
        if self.features is None:
            raise PlanError(
                f"{type(self).__name__} has features=None and the data does not tell: give features= "
                "(the numbers in one example)"
            )
        width = self._width()
        weight = np.zeros((width, self.features), self.dtype)
        return Variables(shared={"weight": weight, "bias": np.zeros(width, self.dtype)})

    def check(self, client: Client) -> None:
        """Raises DataError, naming the client, for a wrong number of features or for y that is no target."""
        for data, part in ((client.data, ""), (client.holdout, " (held out)")):
            if data is not None:
                where = f"client {client.id!r}{part}"
                feature_rows(data.x[:1], self.features, where)
                self._targets(data.y, where)

    def batch(self, data: Data, index: Any) -> dict[str, Any]:
        """``x`` [B, F] and ``y`` (class codes [B], or values [B, K]) of the examples at ``index``."""
        x = feature_rows(data.x[index], self.features, "a batch", self.dtype)
        return {"x": x, "y": self._targets(data.y[index], "a batch")}

    def gradient(
        self, variables: Variables, batch: Batch, step: Any = 0
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Gradient of Σ wᵢ ℓᵢ / Σ wᵢ + l2/2 · ‖W‖² in ``shared``; the bias is not penalised.

        ``batch`` has x [B, …], y as :meth:`batch` makes it and weight [B]. A batch of weight zero counts as
        no examples: only the penalty has a gradient then. The sums leave the penalty out.
        """
        weights, bias = variables.shared["weight"], variables.shared["bias"]
        x = feature_rows(batch["x"], None, "a batch", weights.dtype)
        w = np.asarray(batch["weight"], dtype=weights.dtype)
        metrics, slopes = self._losses(x @ weights.T + bias, np.asarray(batch["y"]))
        slopes *= (w / (w.sum() or 1))[:, None]
        grads = {"weight": slopes.T @ x + self.l2 * weights, "bias": slopes.sum(axis=0)}
        sums = {name: np.asarray(np.sum(w * each, dtype=np.float64)) for name, each in metrics.items()}
        sums = {"examples": np.asarray(np.sum(w, dtype=np.float64)), **sums}
        return {"shared": grads, "personal": {}}, {"buffers": {}, "personal": {}}, sums

    def evaluate(self, variables: Variables, data: Data) -> dict[str, float]:
        """``examples`` and the sum of each metric over all examples."""
        sums = dict.fromkeys(("examples", *self.metric_names), 0.0)
        for x, targets in self._blocks(data):
            scores = x @ variables.shared["weight"].T + variables.shared["bias"]
            metrics, _ = self._losses(scores, targets)
            sums["examples"] += len(x)
            for name, each in metrics.items():
                sums[name] += float(np.sum(each, dtype=np.float64))
        return sums

    def _blocks(self, data: Data) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        targets = self._targets(data.y, "the data to evaluate on")
        for start in range(0, len(data), _ROWS):
            part = slice(start, start + _ROWS)
            rows = feature_rows(data.x[part], self.features, "the data to evaluate on", self.dtype)
            yield rows, targets[part]


@dataclass(frozen=True)
class LinearLearner(_Affine):
    """Linear regression: ℓ = mean over outputs of (x Wᵀ + b − y)², mean over examples, plus l2/2 · ‖W‖².

    features  numbers in one example (``x`` is flattened to [n, F]); None takes it from the data
    outputs   None for ``y`` [n] and predictions [n]; K for ``y`` [n, K] and predictions [n, K]
    l2        weight of the penalty, ≥ 0
    dtype     of the parameters and of the arithmetic
    """

    features: int | None = None
    outputs: int | None = None
    l2: float = 0.0
    dtype: str = "float64"

    metric_names: ClassVar[tuple[str, ...]] = ("loss",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outputs is not None:
            object.__setattr__(self, "outputs", checks.count(outputs=self.outputs))

    def _width(self) -> int:
        return self.outputs or 1

    def _targets(self, y: Any, where: str) -> np.ndarray:
        y = arrays.asnumpy(y)
        wanted = y.shape[:1] + ((self.outputs,) if self.outputs else ())
        if y.dtype.kind not in "fiub" or y.shape != wanted:
            raise DataError(
                f"{where} has y of type {y.dtype} in shape {y.shape}, and LinearLearner("
                f"outputs={self.outputs}) learns numbers in shape {wanted}: change the one or the other"
            )
        return y.reshape(len(y), -1).astype(self.dtype)

    def _losses(self, scores_BK: np.ndarray, targets: np.ndarray) -> Losses:
        residuals = scores_BK - targets.reshape(scores_BK.shape)
        return {"loss": (residuals**2).mean(axis=1)}, residuals * (2 / residuals.shape[1])

    def resolve(self, schema: Schema) -> LinearLearner:
        """This learner with ``features`` out of the data, where it was left open."""
        return self if self.features is not None else replace(self, features=features_of(schema))

    def model(self, variables: Variables) -> LinearModel:
        weight, bias = variables.shared["weight"], variables.shared["bias"]
        return LinearModel(np.array(weight), np.array(bias), self.outputs is None)


@dataclass(frozen=True)
class LogisticLearner(_Affine):
    """Softmax regression: ℓ = −log softmax(x Wᵀ + b)[y], mean over examples, plus l2/2 · ‖W‖².

    features  numbers in one example (``x`` is flattened to [n, F]); None takes it from the data
    classes   C for the labels 0 … C-1, or every label that any client can have; None takes them from the data
    l2        weight of the penalty, ≥ 0
    dtype     of the parameters and of the arithmetic
    """

    features: int | None = None
    classes: Any = None
    l2: float = 0.0
    dtype: str = "float64"

    metric_names: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "classes", known_labels(self.classes))

    def _known(self) -> int | tuple[Any, ...]:
        if self.classes is None:
            raise PlanError(
                "LogisticLearner has classes=None and the data does not tell: give classes= "
                "(their number, or every label)"
            )
        return self.classes

    def _width(self) -> int:
        return len(label_array(self._known()))

    def _targets(self, y: Any, where: str) -> np.ndarray:
        return label_codes(y, self._known(), where)

    def _losses(self, scores_BK: np.ndarray, targets: np.ndarray) -> Losses:
        log_p, rows = _log_softmax(scores_BK), np.arange(len(targets))
        slopes = np.exp(log_p)
        slopes[rows, targets] -= 1
        right = scores_BK.argmax(axis=1) == targets
        return {"loss": -log_p[rows, targets], "accuracy": right}, slopes

    def resolve(self, schema: Schema) -> LogisticLearner:
        """This learner with ``features`` and ``classes`` out of the data, where they were left open."""
        features = features_of(schema) if self.features is None else self.features
        classes = schema.classes if self.classes is None else self.classes
        return replace(self, features=features, classes=classes)

    def predict_proba(self, variables: Variables, x: Any) -> np.ndarray:
        """The probability of each class [n, K], in the order of the sorted labels."""
        return self.model(variables).predict_proba(x)

    def model(self, variables: Variables) -> LogisticModel:
        weight, bias = variables.shared["weight"], variables.shared["bias"]
        return LogisticModel(np.array(weight), np.array(bias), label_array(self._known()))
