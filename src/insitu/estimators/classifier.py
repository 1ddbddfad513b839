"""FederatedClassifier: any classifier, trained where the data are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if

from insitu.core.errors import DataError
from insitu.estimators.inputs import labelled
from insitu.estimators.learner import gives
from insitu.estimators.trained import Trained


class FederatedClassifier(ClassifierMixin, Trained):
    """Trains one classifier on rows that are treated as belonging to many clients, and predicts like any other.

    ``fit(X, y, groups=hospital)`` makes one client a hospital; without groups, rows are dealt out at random. Training
    asks the clients for updates only; what ``fit`` sees in one place is what its caller handed in, and of the labels
    it takes the list of classes.

    estimator     a scikit-learn classifier with coefficients, a PyTorch module (one output a class) or a callable
                  that makes one, one of insitu's learners, or any object with ``fit``, ``get_params`` and
                  ``set_params`` on arrays; it is copied, never changed, and learns the codes 0 … C-1 of the classes
    algorithm     what clients and server do; None: ``FedAvg()``
    rounds        rounds to train
    clients       how many clients, where there are no groups (at most one a row)
    cohort        who takes part in a round; None: everyone
    stages        done to every update on its way: clipping, noise, compression
    reduce        how updates become one; None: as the algorithm says
    engine        where clients' work is done; None: the fastest that can
    random_state  a whole number is the run's seed: the same answer every time; None: another one each time
    store         a file for the run's record and checkpoints; None: nothing is written
    verbose       prints a line a round to stderr

    Fitted attributes: ``classes_`` [C], ``n_features_in_``, ``feature_names_in_`` where X has names, ``result_`` (the
    :class:`insitu.Result`, without the clients' data) and ``history_`` (one row a round). ``result_.model()`` is the
    trained estimator or module itself.

    A client whose rows cannot be learnt from fails the fit, with its name; none is left out silently.
    """

    def fit(self, X: Any, y: Any, groups: Any = None) -> FederatedClassifier:
        """Trains on X [n, …] (array, DataFrame or tensor), labels y [n] of numbers or text, and groups [n] or None."""
        x, classes, codes = labelled(self, X, y)
        if len(classes) < 2:
            raise DataError(f"y holds only one class, {classes.tolist()[0]!r}: give examples of at least two")
        self._train("classifier", x, codes, groups)
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The label of each example [n]."""
        x = self._features(X)
        codes = _codes(self.result_.predict(x))
        if codes.max() >= len(self.classes_):
            # The model has more outputs than y had classes: the likeliest of those that there were.
            codes = self._probabilities(x).argmax(axis=1)
        return self.classes_[codes]

    @available_if(lambda self: gives(self.estimator, "predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class [n, C], in the order of ``classes_``."""
        return self._probabilities(self._features(X))

    @available_if(lambda self: gives(self.estimator, "decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """The trained estimator's own scores: [n] for two classes, else [n, C]."""
        x = self._features(X)
        return self.result_.model().decision_function(x.reshape(len(x), -1))

    def _probabilities(self, x: np.ndarray) -> np.ndarray:
        result = self.result_
        learner = result.plan.learner
        if hasattr(learner, "predict_proba"):
            variables = replace(result.variables, personal=learner.init(result.seed).personal)
            p = learner.predict_proba(variables, x)
        else:
            model = result.model()
            p = model.predict_proba(x.reshape(len(x), -1) if isinstance(model, BaseEstimator) else x)
        p = np.asarray(p, dtype=np.float64)[:, : len(self.classes_)]
        return p / p.sum(axis=1, keepdims=True)


def _codes(predicted: Any) -> np.ndarray:
    """Predictions [n] as whole numbers; DataError where an object of the user's own predicts something else."""
    predicted = np.asarray(predicted)
    codes = predicted.astype(np.int64)
    if codes.ndim != 1 or (codes != predicted).any() or (codes < 0).any():
        raise DataError(
            f"the trained model predicts {predicted.ravel()[:3].tolist()}, … in shape {predicted.shape}: its predict"
            " must give the codes 0 … C-1 that it was trained on, [n]"
        )
    return codes
