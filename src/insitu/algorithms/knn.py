"""KNN: exact nearest neighbours whose training data never leaves the clients."""

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

CHUNK = 2**22
"""Elements of the difference between queries and examples that are held at once."""


@dataclass(frozen=True, kw_only=True)
class KNN(Algorithm):
    r"""Each client tells its k nearest candidates for every query; the k nearest of all candidates vote.

    .. math::
        \hat y(q) = \operatorname{mode} \{ y_i : i \text{ among the } k \text{ least } (\lVert q - x_i \rVert^2, i) \}

    The k nearest overall are among the k nearest of each client, so the answer is exact: that of one machine holding
    all rows, wherever they lie. Equal distances are decided by the smaller row number (:attr:`Data.rows`; clients
    without any count their own rows, and the one that comes first goes first), equal votes by the smaller label.

    k        neighbours that vote
    weights  ``"uniform"``, or ``"distance"``: votes count 1/distance

    What leaves a client are distances, row numbers and labels of its nearest examples, not the examples. The queries
    do reach every client. One round is enough: it counts examples and collects the labels that there are.

    Reference: Cover and Hart, *Nearest neighbor pattern classification*, 1967; the votes by distance are scikit-learn's
    (after Dudani, 1976).
    """

    k: int = 3
    weights: Literal["uniform", "distance"] = "uniform"
    learner_needed: ClassVar[Literal["gradient", "any", "none"]] = "none"

    def __post_init__(self) -> None:
        checks.count(k=self.k)
        checks.one_of(("uniform", "distance"), weights=self.weights)

    def init(self, start: Variables | None) -> dict[str, Any]:
        return {"examples": np.zeros(0), "classes": np.zeros(0)}

    def ask(self, state: dict[str, Any], round: int) -> Tree:
        return {}

    def local(self, task: Task, client: Client, learner: Any, memory: Tree | None) -> tuple[Update, Tree | None]:
        data = _checked(client)
        if task.kind == "predict":
            found = nearest(task.message["x"], data, self.k)
            return Update({"candidates": found}, {"candidates": 1.0}), memory
        if task.kind == "evaluate":
            raise PlanError("a client cannot score nearest neighbours alone: evaluate with a central test set")
        n, d = data.x.shape
        counted = {"classes": np.unique(data.y), "examples": np.array([float(n)]), "d": np.array([d])}
        return Update({"candidates": counted}, {"candidates": 1.0}, {"examples": float(n)}), memory

    def tell(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        told = total.value["candidates"]
        if len(set(told["d"].tolist())) > 1:
            raise DataError(f"clients disagree on the number of features: {sorted(set(told['d'].tolist()))}")
        # A cohort may have too few where all clients together have enough, and all of them answer.
        if total.clients == total.population and told["examples"].sum() < self.k:
            raise DataError(f"k={self.k} neighbours among {int(told['examples'].sum())} examples: use a smaller k")
        return {"examples": told["examples"], "classes": np.unique(told["classes"])}

    def params(self, state: dict[str, Any]) -> Variables:
        return Variables(shared=state)

    def reduce(self) -> Reduce:
        return Concat(("candidates",), axis=-1)

    def query(self, state: dict[str, Any], x: Any) -> Tree:
        """The message of a predict task: x [q, d]."""
        return {"x": points(Data(x), "the array of queries")}

    def read(self, state: dict[str, Any], total: Total) -> np.ndarray:
        """The predicted labels [q] out of all clients' candidates [q, Σ k]."""
        found = total.value["candidates"]
        order = np.lexsort((found["row"], found["distance"]))[:, : self.k]
        label, distance = (np.take_along_axis(found[name], order, 1) for name in ("label", "distance"))
        return vote(label, np.sqrt(distance) if self.weights == "distance" else None)

    @classmethod
    def example(cls) -> KNN:
        return cls(k=3)


def nearest(queries: np.ndarray, data: Data, k: int) -> dict[str, np.ndarray]:
    """The k nearest examples of each query by (squared distance, row): ``{"distance", "row", "label"}``, each [q, ≤k].

    Differences are squared and summed pair by pair, so that a distance has the same bits whoever computes it.
    """
    x = data.x
    if queries.shape[1] != x.shape[1]:
        raise DataError(f"queries have {queries.shape[1]} features, the clients' examples {x.shape[1]}")
    rows = np.arange(len(x)) if data.rows is None else np.asarray(data.rows)
    step = max(1, CHUNK // max(1, x.size))
    found = []
    # At least one piece, so that no queries get no candidates in the right shape.
    for start in range(0, max(1, len(queries)), step):
        d2 = ((queries[start : start + step, None, :] - x[None, :, :]) ** 2).sum(axis=2)
        order = np.lexsort((np.broadcast_to(rows, d2.shape), d2))[:, :k]
        found.append({"distance": np.take_along_axis(d2, order, 1), "row": rows[order], "label": data.y[order]})
    return {name: np.concatenate([f[name] for f in found]) for name in ("distance", "row", "label")}


def vote(label: np.ndarray, distance: np.ndarray | None) -> np.ndarray:
    """The label [q] with the most votes among [q, k]; equal votes go to the smaller label.

    With distances, votes count 1/distance; where some distance is zero, only those at zero vote.
    """
    classes, column = np.unique(label, return_inverse=True)
    weight = np.ones(label.shape)
    if distance is not None:
        zero = distance == 0
        weight = np.where(zero.any(axis=1, keepdims=True), zero, 1 / np.where(zero, 1, distance))
    votes = np.zeros((len(label), len(classes)))
    np.add.at(votes, (np.arange(len(label))[:, None], column.reshape(label.shape)), weight)
    return np.asarray(classes[votes.argmax(axis=1)] if len(label) else classes)


def _checked(client: Client) -> Data:
    """The client's data as numbers x [n, d] and y [n]; DataError, naming the client, where they are no such thing."""
    x = points(client.data, f"client {client.id!r}")
    y = None if client.data.y is None else arrays.asnumpy(client.data.y)
    if y is None or not np.issubdtype(y.dtype, np.number):
        raise DataError(
            f"client {client.id!r}: nearest neighbours need labels that are numbers, not"
            f" {None if y is None else y.dtype}: encode them first (numpy.unique(y, return_inverse=True))"
        )
    if y.shape != (len(x),):
        raise DataError(f"client {client.id!r} has y of shape {y.shape}: give one label an example, [{len(x)}]")
    return Data(x, y, client.data.rows)
