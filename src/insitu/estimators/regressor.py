"""FederatedRegressor: any regressor, trained where the data are."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import column_or_1d

from insitu.estimators.inputs import examples
from insitu.estimators.trained import Trained


class FederatedRegressor(RegressorMixin, Trained):
    """Trains one regressor on rows that are treated as belonging to many clients, and predicts like any other.

    The arguments and fitted attributes are those of :class:`FederatedClassifier`, without ``classes_``; a PyTorch
    module is trained on squared error. Scale the features, and the target where it is large: averaging descends with
    one learning rate for all.
    """

    def fit(self, X: Any, y: Any, groups: Any = None) -> FederatedRegressor:
        """Trains on X [n, …] (array, DataFrame or tensor), y [n] (or [n, K], for modules), and groups [n] or None."""
        x, y = examples(self, X, y, multi_output=True, y_numeric=True)
        y = y.astype(np.float64)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return self._train("regressor", x, y, groups)

    def predict(self, X: Any) -> np.ndarray:
        """The value of each example: [n], or [n, K]."""
        x = self._features(X)
        predicted = self.result_.predict(x)
        return predicted[:, 0] if predicted.ndim == 2 and predicted.shape[1] == 1 else predicted
