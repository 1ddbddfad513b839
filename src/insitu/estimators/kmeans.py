"""FederatedKMeans: Lloyd's algorithm on sums and counts, until the centres stand still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from insitu.algorithms.kmeans import KMeans, distances
from insitu.core import checks
from insitu.core.errors import DataError, PlanError
from insitu.core.protocols import Setting
from insitu.data import Clients
from insitu.engines.inline import Inline
from insitu.estimators.inputs import EVERYBODY, clients_of, features, seed_of
from insitu.history import History
from insitu.rounds.memory import Memories
from insitu.rounds.outcome import Model
from insitu.rounds.plan import Plan
from insitu.rounds.server import Server


class FederatedKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means whose clients tell sums and counts: with the same start, the same centres as on one machine.

    n_clusters    centres
    init          ``"k-means"``: each client clusters its own rows, and the server clusters those centres by their
                  counts; or first centres [n_clusters, d]
    max_iter      iterations of Lloyd's algorithm at most
    tol           as in scikit-learn: it stops when the centres' squared shift, all together, is at most tol times the
                  mean variance of the features. The variance is told by sums too, in two rounds before the first;
                  ``tol=0`` needs none, and goes on until nothing moves
    clients       how many clients, where ``fit`` gets no groups
    random_state  decides the first centres and the random split; a whole number gives the same answer every time

    Fitted attributes: ``cluster_centers_`` [n_clusters, d], ``labels_`` [n], ``inertia_``, ``n_iter_``,
    ``n_features_in_``, ``feature_names_in_`` where X has names, and ``history_``: one row an iteration, with the
    ``inertia`` of the centres that it began with and the ``shift`` that it made.

    A centre that loses all its examples stays where it is, where scikit-learn moves it to the farthest example: no
    client can tell which that is.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means",
        max_iter: int = 300,
        tol: float = 1e-4,
        clients: int = 10,
        random_state: Any = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.clients = clients
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> FederatedKMeans:
        """Clusters X [n, d]; one client a distinct group of ``groups`` [n]. Labels y are not looked at."""
        x = self._points(X, fitting=True)
        start, seed = self._start(x), seed_of(self.random_state)
        clients = clients_of(x, None, groups, self.clients, seed)
        least = self.tol * _variance(clients, x.shape, seed) if self.tol else 0.0
        rows = []
        rounds = _rounds(KMeans(k=int(self.n_clusters), start=start, seed=seed), clients, seed)
        if start is None:
            next(rounds)
        for n_iter in range(1, self.max_iter + 1):
            state = next(rounds)
            rows.append({"round": n_iter, "inertia": float(state["inertia"]), "shift": float(state["shift"])})
            if state["shift"] ** 2 <= least:
                break
        self.cluster_centers_, self.n_iter_ = state["centers"], n_iter
        # A round measures the centres that it begins with, so the last ones take another, whose centres are not kept.
        self.inertia_ = float(next(rounds)["inertia"])
        self.history_ = History(rows)
        self.labels_ = self._distances(x).argmin(axis=1)
        self._n_features_out = len(self.cluster_centers_)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The place of the nearest centre of each example: [n] of 0 … n_clusters-1."""
        return self._distances(self._points(X)).argmin(axis=1)

    def transform(self, X: Any) -> np.ndarray:
        """The distance of each example to each centre [n, n_clusters]."""
        return np.sqrt(self._distances(self._points(X)))

    def score(self, X: Any, y: Any = None) -> float:
        """The negative sum of squared distances to the nearest centres."""
        return -float(self._distances(self._points(X)).min(axis=1).sum())

    def _points(self, X: Any, *, fitting: bool = False) -> np.ndarray:
        if not fitting:
            check_is_fitted(self, "cluster_centers_")
        return features(self, X, fitting=fitting, allow_nd=False, dtype=np.float64)

    def _distances(self, x: np.ndarray) -> np.ndarray:
        return distances(x, self.cluster_centers_)

    def _start(self, x: np.ndarray) -> np.ndarray | None:
        """The first centres that were given, or None; PlanError for arguments out of range."""
        checks.count(max_iter=self.max_iter)
        checks.not_negative(tol=self.tol)
        if checks.count(n_clusters=self.n_clusters) > len(x):
            raise DataError(f"n_samples={len(x)} should be >= n_clusters={self.n_clusters}: ask for fewer clusters")
        if isinstance(self.init, str):
            checks.one_of(("k-means",), init=self.init)
            return None
        start = check_array(self.init, dtype=np.float64, input_name="init")
        if start.shape != (self.n_clusters, x.shape[1]):
            wanted = (self.n_clusters, x.shape[1])
            raise PlanError(f"init has shape {start.shape}: give n_clusters centres in the shape {wanted}")
        return start


def _rounds(algorithm: KMeans, clients: Clients, seed: int) -> Iterator[dict[str, Any]]:
    """The state after each round, for as long as it is asked for.

    The loop of :func:`insitu.run` goes for a number of rounds; this one's end depends on the rounds themselves.
    """
    plan, memories, model = Plan(algorithm, policy=EVERYBODY), Memories(), Model(0, algorithm.init(None))
    session = Inline().open(Setting(plan, clients, memories, 0, seed))
    server = Server("k-means", plan, session, clients, memories, seed)
    while True:
        outcome = server.run_round(model, model.version + 1)
        if outcome.model is None:
            failure = outcome.failures[0]
            raise DataError(f"client {failure.client!r} cannot be clustered: {failure.error}")
        model = outcome.model
        yield model.state


def _variance(clients: Clients, shape: tuple[int, int], seed: int) -> float:
    """The mean variance of the features: round 1 of a 1-means finds the mean, round 2 the squares around it."""
    rounds = _rounds(KMeans(k=1, start=np.zeros((1, shape[1]))), clients, seed)
    next(rounds)
    return float(next(rounds)["inertia"]) / (shape[0] * shape[1])
