"""DistributedXGBClassifier: XGBoost's trees for two or more classes, over worker processes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from insitu.core.errors import DataError, PlanError
from insitu.estimators.boosted.trained import Boosted


class DistributedXGBClassifier(ClassifierMixin, Boosted):
    """XGBoost trained by worker processes, each with its own rows, that add their histograms by XGBoost's collective.

    With ``tree_method="hist"`` every worker has the same trees, and where no feature has more distinct values than
    ``max_bin`` they are those of one process with all rows, to rounding. Otherwise bins come from a merged sketch.

    n_estimators   trees (times the number of classes, where there are more than two)
    max_depth, learning_rate, max_bin  as in XGBoost, with its defaults
    params         more of XGBoost's parameters: ``{"min_child_weight": 5, "reg_lambda": 2.0, "subsample": 0.8}``
    workers        processes, where ``fit`` gets no groups: each has an equal stretch of the rows. 1: one process
    n_jobs         threads in each of them
    timeout        seconds without a new tree from anyone after which training has failed
    random_state   a whole number gives the same trees every time

    NaN in X is a missing value. Fitted attributes: ``classes_`` [C], ``booster_`` (the ``xgboost.Booster``),
    ``n_workers_``, ``n_features_in_``, ``feature_names_in_`` where X has names.

    A worker that dies or falls silent ends the fit with EngineError, which names it; nothing waits for ever.
    """

    def fit(self, X: Any, y: Any, groups: Any = None) -> DistributedXGBClassifier:
        """Trains on X [n, F], labels y [n] of numbers or text; one worker a group of ``groups`` [n], or None."""
        x, y = self._checked(X, y)
        check_classification_targets(y)
        if "objective" in (self.params or {}):
            raise PlanError(
                f"params has objective={self.params['objective']!r}: leave it out, the classes of y tell it"
            )
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"y holds only one class, {classes.tolist()[0]!r}: give examples of at least two")
        several = {"objective": "multi:softprob", "num_class": len(classes)}
        self._train(x, codes, groups, {"objective": "binary:logistic"} if len(classes) == 2 else several)
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each example [n]."""
        p = self.predict_proba(X)  # first, since it says whether there was a fit
        return self.classes_[p.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class [n, C], in the order of ``classes_``."""
        p = self._predicted(X)
        return np.stack([1 - p, p], axis=1) if p.ndim == 1 else p
