"""DistributedXGBRegressor: XGBoost's trees for numbers, over worker processes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin

from insitu.estimators.boosted.trained import Boosted


class DistributedXGBRegressor(RegressorMixin, Boosted):
    """XGBoost for numbers; arguments and attributes are those of :class:`DistributedXGBClassifier`, without classes.

    The objective is squared error, or another that ``params`` names: ``{"objective": "count:poisson"}``.
    """

    def fit(self, X: Any, y: Any, groups: Any = None) -> DistributedXGBRegressor:
        """Trains on X [n, F] and numbers y [n]; one worker a distinct group of ``groups`` [n], or None."""
        x, y = self._checked(X, y, y_numeric=True)
        objective = (self.params or {}).get("objective", "reg:squarederror")
        self._train(x, y.astype(np.float64), groups, {"objective": objective})
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The value of each example [n]."""
        return self._predicted(X)
