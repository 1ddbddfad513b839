"""What ``fit`` and ``predict`` are handed: checked as scikit-learn checks it, and shared out to clients."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets

from insitu.core import arrays, checks
from insitu.data import Clients
from insitu.data.partition import iid
from insitu.rounds.policy import Policy

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn before 1.6, where it was a method

    def validate_data(_estimator: Any, *values: Any, **options: Any) -> Any:
        """As in scikit-learn."""
        return _estimator._validate_data(*values, **options)


EVERYBODY = Policy(quorum=1.0)
"""A client that fails here is not away, it has unsuitable rows: its error is raised, and nobody is left out."""


def features(estimator: Any, X: Any, *, fitting: bool = False, **options: Any) -> np.ndarray:
    """X as a finite array of numbers [n, …]; fitting notes its columns, otherwise they must be the same."""
    return validate_data(estimator, _array(X), reset=fitting, **{"allow_nd": True, **options})


def examples(estimator: Any, X: Any, y: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """X and y to fit: finite, of one length."""
    return validate_data(estimator, _array(X), _array(y), **{"allow_nd": True, **options})


def labelled(estimator: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X [n, …], the sorted classes [C] and the code 0 … C-1 of each label [n]."""
    x, y = examples(estimator, X, y)
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    return x, classes, codes


def clients_of(x: np.ndarray, y: np.ndarray | None, groups: Any, clients: int, seed: int) -> Clients:
    """One client a distinct group; without groups, rows dealt out at random to so many clients (at most one a row)."""
    if groups is not None:
        return Clients.by_key(x, y, groups)
    return Clients.from_arrays(x, y, iid(len(x), min(checks.count(clients=clients), len(x)), seed))


def seed_of(random_state: Any) -> int:
    """A run's seed: a whole number as it is, so that ``insitu.run(seed=…)`` gives the same; else one drawn from it."""
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def _array(values: Any) -> Any:
    """A torch tensor, on whatever device, as NumPy; all else as it is, since scikit-learn reads names off frames."""
    return arrays.asnumpy(values) if arrays.is_torch(values) else values
