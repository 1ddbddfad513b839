"""FederatedKNeighborsClassifier: exact nearest neighbours, asked from the clients."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from insitu.algorithms.knn import KNN
from insitu.core import checks
from insitu.core.errors import DataError
from insitu.estimators.inputs import EVERYBODY, clients_of, features, labelled
from insitu.rounds.plan import Plan
from insitu.run import run


class FederatedKNeighborsClassifier(ClassifierMixin, BaseEstimator):
    """The majority of the k nearest examples of all clients: the same answer as on one machine, however rows are split.

    Equal distances are decided by the smaller row of X, equal votes by the smaller label; scikit-learn leaves the
    first to chance.

    n_neighbors  neighbours that vote
    weights      ``"uniform"``, or ``"distance"``: votes count 1/distance
    clients      how many clients, where ``fit`` gets no groups; it changes nothing in the answer

    The model is its clients: a fitted object keeps their rows, as scikit-learn's does, and so does a pickle of it.
    Fitted attributes: ``classes_``, ``n_features_in_``, ``feature_names_in_`` where X has names, ``result_`` and
    ``history_``.
    """

    def __init__(self, n_neighbors: int = 3, *, weights: str = "uniform", clients: int = 10) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.clients = clients

    def fit(self, X: Any, y: Any, groups: Any = None) -> FederatedKNeighborsClassifier:
        """Shares out X [n, …], labels y [n] of numbers or text, by groups [n] or at random."""
        x, classes, codes = labelled(self, X, y)
        if checks.count(n_neighbors=self.n_neighbors) > len(x):
            raise DataError(
                f"n_neighbors={self.n_neighbors} and n_samples = {len(x)}: give at least as many examples, or a smaller"
                " n_neighbors"
            )
        plan = Plan(KNN(k=int(self.n_neighbors), weights=self.weights), policy=EVERYBODY)
        clients = clients_of(x, codes, groups, self.clients, 0)
        self.result_ = run(plan, clients, rounds=1, store=None, observers=())
        self.history_ = self.result_.history
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The label of each example [n]; every client is asked for its nearest candidates."""
        check_is_fitted(self, "result_")
        return self.classes_[self.result_.predict(features(self, X))]
