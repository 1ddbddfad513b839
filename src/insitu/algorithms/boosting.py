"""Boosting: gradient boosted trees from histograms that add over clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from insitu.algorithms.kmeans import points
from insitu.core import arrays, checks
from insitu.core.errors import DataError, PlanError
from insitu.core.protocols import Algorithm, Reduce
from insitu.core.tree import Tree
from insitu.core.types import Client, Data, Task, Total, Update, Variables
from insitu.reduce.concat import Concat

DEEPEST = 12
"""A tree's nodes lie in an array of 2^(depth+1)-1 places, and a level's histograms double with each level."""
FINER = 8
"""A client tells so many times more quantiles than there will be bins, so that merged ones are near the pooled ones."""
LEAST_GAIN = 1e-6
"""A split must bring more than this: XGBoost's bound for what is rounding."""
GROWN = -2
BINS = -1
"""States of ``level`` when no level is grown: all trees are there; bins are to be made."""


@dataclass(frozen=True, kw_only=True)
class Boosting(Algorithm):
    r"""Each client tells sums of gradients by bin; the server finds the splits, a level of a tree a round.

    .. math::
        \text{gain} = \frac{G_L^2}{H_L + \lambda} + \frac{G_R^2}{H_R + \lambda} - \frac{G^2}{H + \lambda}, \qquad
        w = -\eta \frac{G}{H + \lambda}

    G and H are the sums of first and second derivatives of the loss over all clients' examples in a node. They add, so
    the trees are those of one machine holding all rows. In round 1 clients tell their features' values (quantiles with
    counts where there are many) for bins, and their labels' mean. Then a tree takes ``depth`` rounds at most, so
    ``rounds=1 + trees * depth`` is enough (:attr:`rounds`); rounds after the last tree change nothing.

    trees             trees to grow
    depth             levels of a tree; the histograms of the last are 2^(depth-1) · features · bins · 2 numbers
    lr                η, what a tree's weights are multiplied by
    loss              ``"logistic"`` for labels 0 and 1, or ``"squared"`` for numbers
    bins              bins a feature; with at most so many distinct values every one is a bin, and nothing is lost
    reg_lambda        λ
    min_child_weight  the least H on either side of a split

    The defaults are XGBoost's, and so is the arithmetic: float32 values and gradients, sums in float64, equal gains
    go to the first feature. Where no feature has more distinct values than bins, predictions are those of
    ``tree_method="hist"`` to rounding. Clients remember their examples' scores, which spares time and changes nothing.
    Not here: missing values, several classes, pruning and XGBoost's other options, which ``DistributedXGBClassifier``
    has.

    The history's ``train_loss`` is that of the trees which were whole before the round. What leaves a client: in round
    1 values or quantiles of every feature with counts; then sums over the examples in a bin, which may be one example.

    Reference: Chen and Guestrin, *XGBoost: A Scalable Tree Boosting System*, KDD 2016. Bins are quantiles of the merged
    summaries, where XGBoost has a sketch with a proven bound.
    """

    trees: int = 100
    depth: int = 6
    lr: float = 0.3
    loss: Literal["logistic", "squared"] = "logistic"
    bins: int = 256
    reg_lambda: float = 1.0
    min_child_weight: float = 1.0
    learner_needed: ClassVar[Literal["gradient", "any", "none"]] = "none"

    def __post_init__(self) -> None:
        checks.count(trees=self.trees)
        if checks.count(depth=self.depth) > DEEPEST:
            raise PlanError(f"Expected depth={self.depth} <= {DEEPEST}: more trees do what deeper ones would")
        checks.positive(lr=self.lr)
        checks.one_of(("logistic", "squared"), loss=self.loss)
        if checks.count(bins=self.bins) < 2:
            raise PlanError(f"Expected bins={self.bins} >= 2: one bin cannot be split")
        checks.not_negative(reg_lambda=self.reg_lambda)
        checks.not_negative(min_child_weight=self.min_child_weight)

    @property
    def rounds(self) -> int:
        """Rounds that are enough for all trees."""
        return 1 + self.trees * self.depth

    def init(self, start: Variables | None) -> dict[str, Any]:
        none = self._empty(0)
        edges, base = np.zeros((0, 0), np.float32), np.zeros((), np.float32)
        return {"edges": edges, "base": base, "trees": none, "level": np.asarray(BINS)}

    def ask(self, state: dict[str, Any], round: int) -> Tree:
        return dict(state)

    def local(self, task: Task, client: Client, learner: Any, memory: Tree | None) -> tuple[Update, Tree | None]:
        data = client.holdout if task.kind == "evaluate" else client.data
        if data is None:
            return Update({}, {}, {"examples": 0.0}), memory
        asked, level = task.message, int(task.message["level"])
        x, y = self._columns(data, f"client {client.id!r}")
        if level == BINS:
            metrics = {"examples": float(len(x))}
            if task.kind == "evaluate":
                return Update({}, {}, metrics), memory
            labels = {"sum": np.asarray(y.sum(dtype=float)), "examples": np.asarray(float(len(y)))}
            value = {"columns": _summaries(x, FINER * self.bins), "labels": labels}
            return Update(value, {"columns": 1.0, "labels": 1.0}, metrics), memory
        if x.shape[1] != len(asked["edges"]):
            raise DataError(f"client {client.id!r} has {x.shape[1]} features, the bins {len(asked['edges'])}")
        if task.kind == "evaluate":
            margin = BoostedTrees(self.loss, asked["base"], asked["trees"]).margins(x)
            return Update({}, {}, self._metrics(margin, y)), memory
        whole = len(asked["trees"]["value"]) - (level != GROWN)
        margin, memory = _margins(x, asked, whole, memory)
        metrics = self._metrics(margin, y)
        if level == GROWN:
            return Update({}, {}, metrics), memory
        g, h = self._derivatives(margin, y)
        sums = _histogram(x, g, h, asked, level)
        return Update({"histogram": {"sums": sums}}, {"histogram": 1.0}, metrics), memory

    def tell(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        if "columns" in total.value:
            return self._with_bins(state, total)
        if "histogram" not in total.value:
            return state
        # A mean over clients, each of weight one.
        sums = total.value["histogram"]["sums"] * total.weight["histogram"]
        return self._grown(state, sums)

    def params(self, state: dict[str, Any]) -> Variables:
        return Variables(shared={"base": state["base"], **state["trees"]})

    def measures(self, state: dict[str, Any]) -> dict[str, float]:
        return {"trees": float(max(0, len(state["trees"]["value"]) - (int(state["level"]) != GROWN)))}

    def model(self, state: dict[str, Any]) -> BoostedTrees:
        return BoostedTrees(self.loss, state["base"], state["trees"])

    def reduce(self) -> Reduce:
        return Concat(("columns",), axis=0)

    @classmethod
    def example(cls) -> Boosting:
        return cls(trees=3, depth=2, loss="squared")

    def _empty(self, count: int) -> dict[str, np.ndarray]:
        """Trees of one leaf that says zero: feature (-1 at leaves), threshold and value by node, [count, nodes]."""
        shape = (count, 2 ** (self.depth + 1) - 1)
        value, threshold = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        return {"feature": np.full(shape, -1, np.int32), "threshold": threshold, "value": value}

    def _columns(self, data: Data, where: str) -> tuple[np.ndarray, np.ndarray]:
        """x [n, F] and y [n] in float32; DataError, naming ``where``, where they are no such thing."""
        x = _float32(points(data, where))
        y = None if data.y is None else arrays.asnumpy(data.y)
        if y is None or y.ndim != 1 or y.dtype.kind not in "biuf":
            found = "no labels" if y is None else f"y of type {y.dtype} in shape {y.shape}"
            raise DataError(f"{where} has {found}: give numbers in shape [n]")
        y = _float32(y)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise DataError(f"{where} has numbers that are NaN or Inf in float32: fill them in, or scale them")
        if self.loss == "logistic" and not np.isin(y, (0, 1)).all():
            raise DataError(
                f"{where} has the label {y[~np.isin(y, (0, 1))][0]:g}, and loss='logistic' is for 0 and 1: encode"
                " labels, use loss='squared' for numbers, or DistributedXGBClassifier for several classes"
            )
        return x, y

    def _derivatives(self, margin: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.loss == "squared":
            return margin - y, np.ones_like(y)
        p = _sigmoid(margin)
        return p - y, np.maximum(p * (1 - p), np.float32(1e-16))

    def _metrics(self, margin: np.ndarray, y: np.ndarray) -> dict[str, float]:
        n, score = float(len(y)), margin.astype(float)
        if self.loss == "squared":
            return {"examples": n, "loss": float(((score - y) ** 2).sum())}
        loss = np.logaddexp(0, np.where(y > 0, -score, score)).sum()
        return {"examples": n, "loss": float(loss), "accuracy": float(((score > 0) == (y > 0)).sum())}

    def _with_bins(self, state: dict[str, Any], total: Total) -> dict[str, Any]:
        told, labels = total.value["columns"], total.value["labels"]
        edges = [_edges(**told[str(f)], bins=self.bins) for f in range(len(told))]
        padded = np.full((len(edges), max(1, *map(len, edges))), np.inf, np.float32)
        for row, own in zip(padded, edges, strict=True):
            row[: len(own)] = own
        mean = float(labels["sum"] / labels["examples"])
        if self.loss == "logistic":
            if not 0 < mean < 1:
                raise DataError(f"all labels of all clients are {mean:g}: give examples of both classes")
            mean = float(np.log(mean / (1 - mean)))
        base = np.asarray(mean, np.float32)
        return {"edges": padded, "base": base, "trees": self._empty(1), "level": np.asarray(0)}

    def _grown(self, state: dict[str, Any], sums: np.ndarray) -> dict[str, Any]:
        """The state with one level more of its last tree. sums [nodes of the level, F, bins, 2] of G and H."""
        level, trees = int(state["level"]), {name: array.copy() for name, array in state["trees"].items()}
        feature, threshold, value = (trees[name][-1] for name in ("feature", "threshold", "value"))
        left = sums.cumsum(axis=2)[:, :, :-1]
        whole = sums[:, 0].sum(axis=1)  # of the node, whichever feature's bins are added up
        right = whole[:, None, None] - left
        gain = self._gain(left) + self._gain(right) - self._gain(whole)[:, None, None]
        least = self.min_child_weight
        fits = (left[..., 1] >= least) & (right[..., 1] >= least) & np.isfinite(state["edges"])
        gain = np.where(fits, gain, -np.inf).reshape(len(sums), -1)
        if level == 0:
            value[0] = self._weight(whole[0])
        split = False
        for place, best in enumerate(gain.argmax(axis=1)):
            if not gain[place, best] > LEAST_GAIN:
                continue
            node, (f, b) = 2**level - 1 + place, divmod(int(best), state["edges"].shape[1])
            feature[node], threshold[node], value[node], split = f, state["edges"][f, b], 0, True
            value[2 * node + 1] = self._weight(left[place, f, b])
            value[2 * node + 2] = self._weight(right[place, f, b])
        level += 1
        if level == self.depth or not split:
            level = GROWN if len(trees["value"]) == self.trees else 0
            if level == 0:
                trees = {name: np.concatenate([trees[name], more]) for name, more in self._empty(1).items()}
        return {**state, "trees": trees, "level": np.asarray(level)}

    def _gain(self, sums: np.ndarray) -> np.ndarray:
        g, h = sums[..., 0], sums[..., 1]
        return np.where(h > 0, g**2 / np.where(h > 0, h + self.reg_lambda, 1), 0).astype(np.float32)

    def _weight(self, sums: np.ndarray) -> np.float32:
        g, h = sums
        if h <= 0 or h < self.min_child_weight:
            return np.float32(0)
        return np.float32(-g / (h + self.reg_lambda)) * np.float32(self.lr)


@dataclass(frozen=True)
class BoostedTrees:
    """The trained trees, with a ``predict``: ``base`` plus each tree's value, added in float32."""

    loss: str
    base: np.ndarray
    trees: dict[str, np.ndarray]

    def margins(self, x: Any) -> np.ndarray:
        """The scores [n] of the examples x [n, F]: values for squared loss, log odds for logistic."""
        x = _float32(points(Data(arrays.asnumpy(x)), "x"))
        largest = int(self.trees["feature"].max(initial=-1))
        if x.shape[1] <= largest:
            raise DataError(f"x has {x.shape[1]} features, the trees ask for feature {largest}: give the same columns")
        margin = np.full(len(x), self.base, np.float32)
        for feature, threshold, value in zip(*(self.trees[n] for n in ("feature", "threshold", "value")), strict=True):
            margin += value[_route(x, feature, threshold)]
        return margin

    def predict(self, x: Any) -> np.ndarray:
        """Values [n], or the likelier of the labels 0 and 1."""
        margin = self.margins(x)
        return margin if self.loss == "squared" else (margin > 0).astype(np.int64)

    def predict_proba(self, x: Any) -> np.ndarray:
        """The probabilities of 0 and of 1 [n, 2]; PlanError for squared loss, which has none."""
        if self.loss == "squared":
            raise PlanError("loss='squared' has no probabilities: use predict, or train with loss='logistic'")
        p = _sigmoid(self.margins(x))
        return np.stack([1 - p, p], axis=1)


def _float32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what becomes Inf is refused, or lies beyond every threshold
        return x.astype(np.float32)


def _sigmoid(margin: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(89) is Inf in float32, and one over it is the right zero
        return np.float32(1) / (np.float32(1) + np.exp(-margin))


def _route(x: np.ndarray, feature: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The node of one tree at which each example ends [n]; the children of i are 2i+1 (below the threshold), 2i+2."""
    node, rows = np.zeros(len(x), np.int64), np.arange(len(x))
    while (inner := feature[node] >= 0).any():
        right = x[rows, np.maximum(feature[node], 0)] >= threshold[node]
        node = np.where(inner, 2 * node + 1 + right, node)
    return node


def _margins(x: np.ndarray, asked: Tree, whole: int, memory: Tree | None) -> tuple[np.ndarray, Tree | None]:
    """The scores [n] of the first ``whole`` trees, and the memory of them: those remembered, and the trees since."""
    done = 0 if memory is None else int(memory["trees"])
    if memory is None or done > whole or len(memory["margin"]) != len(x):
        memory, done = {"margin": np.full(len(x), asked["base"], np.float32), "trees": np.asarray(0)}, 0
    if done == whole:
        return memory["margin"], memory
    margin, trees = memory["margin"].copy(), asked["trees"]
    for t in range(done, whole):
        margin += trees["value"][t][_route(x, trees["feature"][t], trees["threshold"][t])]
    return margin, {"margin": margin, "trees": np.asarray(whole)}


def _histogram(x: np.ndarray, g: np.ndarray, h: np.ndarray, asked: Tree, level: int) -> np.ndarray:
    """Sums of g and h by node of the level, feature and bin: [2^level, F, bins, 2] in float64."""
    trees, edges = asked["trees"], asked["edges"]
    place = _route(x, trees["feature"][-1], trees["threshold"][-1]) - (2**level - 1)
    here = place >= 0  # the others ended in a leaf above
    x, g, h, place = x[here], g[here], h[here], place[here]
    nodes, bins = 2**level, edges.shape[1] + 1
    sums = np.empty((nodes, len(edges), bins, 2))
    for f, own in enumerate(edges):
        cell = place * bins + np.searchsorted(own, x[:, f], side="right")
        for i, weight in enumerate((g, h)):
            sums[:, f, :, i] = np.bincount(cell, weight, nodes * bins).reshape(nodes, bins)
    return sums


def _summaries(x: np.ndarray, most: int) -> dict[str, dict[str, np.ndarray]]:
    """Each feature's distinct values with their counts; where there are more than ``most``, quantiles with theirs."""
    found = {}
    for f, column in enumerate(x.T):
        value, count = np.unique(column, return_counts=True)
        if len(value) > most:
            ranks = count.cumsum()
            last = np.unique(np.searchsorted(ranks, np.arange(1, most + 1) * len(column) // most))
            count = np.diff(ranks[last], prepend=0)
            value = value[last]
            value[0] = column.min()
        found[str(f)] = {"value": value, "count": count.astype(float)}
    return found


def _edges(value: np.ndarray, count: np.ndarray, bins: int) -> np.ndarray:
    """Where bins begin, but for the first: at every distinct value, or so that all hold about as much."""
    distinct, place = np.unique(value, return_inverse=True)
    if len(distinct) <= bins:
        return distinct[1:]
    ranks = np.bincount(place, count).cumsum()
    wanted = ranks[-1] * np.arange(1, bins) / bins
    return np.unique(distinct[np.searchsorted(ranks, wanted, side="right").clip(1, len(distinct) - 1)])
