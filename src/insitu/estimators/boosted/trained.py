"""What the classifier and the regressor of XGBoost share: arguments, checks, and a fit over worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted

from insitu.core import checks
from insitu.core.errors import DataError, MissingExtra, PlanError
from insitu.estimators.boosted.team import train
from insitu.estimators.inputs import examples, features, seed_of

MOST_WORKERS = 64
OURS = {
    "num_class": "y tells it",
    "nthread": "say n_jobs",
    "n_jobs": "it is an argument of its own",
    "seed": "say random_state",
    "max_depth": "it is an argument of its own",
    "eta": "say learning_rate",
    "learning_rate": "it is an argument of its own",
    "max_bin": "it is an argument of its own",
    "num_boost_round": "say n_estimators",
    "n_estimators": "it is an argument of its own",
}
"""Parameters of XGBoost that are given in another way here."""
ONLY = {"tree_method": "hist", "device": "cpu", "booster": "gbtree", "data_split_mode": "row"}
"""Parameters of XGBoost that can have one value here."""
# scikit-learn renamed the option in 1.6.
_MAY_LACK = {
    "ensure_all_finite" if "ensure_all_finite" in signature(check_array).parameters else "force_all_finite": "allow-nan"
}


class Boosted(BaseEstimator):
    """The constructor stores its arguments; ``fit`` checks them."""

    def __init__(
        self,
        n_estimators: int = 100,
        *,
        max_depth: int = 6,
        learning_rate: float = 0.3,
        max_bin: int = 256,
        params: dict[str, Any] | None = None,
        workers: int = 2,
        n_jobs: int = 1,
        timeout: float = 60.0,
        random_state: Any = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.max_bin = max_bin
        self.params = params
        self.workers = workers
        self.n_jobs = n_jobs
        self.timeout = timeout
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _more_tags(self) -> dict[str, Any]:
        return {"allow_nan": True}  # what scikit-learn before 1.6 asks

    def _checked(self, X: Any, y: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """X [n, F], where NaN is a missing value, and y [n]."""
        return examples(self, X, y, dtype=np.float64, allow_nd=False, **_MAY_LACK, **options)

    def _train(self, x: np.ndarray, y: np.ndarray, groups: Any, objective: dict[str, Any]) -> None:
        settings, library = {**self._settings(), **objective}, xgboost()
        parts = self._parts(len(x), groups)
        raw = train(
            [(x[rows], y[rows]) for rows in parts],
            settings,
            checks.count(n_estimators=self.n_estimators),
            float(checks.positive(timeout=self.timeout)),
        )
        self.n_workers_ = len(parts)
        self.booster_ = library.Booster(model_file=bytearray(raw))

    def _settings(self) -> dict[str, Any]:
        given = dict(self.params or {})
        for name, cure in OURS.items():
            if name in given:
                raise PlanError(f"params has {name}={given[name]!r}: leave it out, {cure}")
        for name, value in ONLY.items():
            if given.get(name, value) != value:
                raise PlanError(
                    f"params has {name}={given[name]!r}, and workers add histograms of rows on CPUs: leave it out"
                )
        return {
            **ONLY,
            "verbosity": 0,
            **given,
            "max_depth": checks.count(max_depth=self.max_depth),
            "learning_rate": float(checks.positive(learning_rate=self.learning_rate)),
            "max_bin": checks.count(max_bin=self.max_bin),
            "nthread": checks.count(n_jobs=self.n_jobs),
            "seed": seed_of(self.random_state),
        }

    def _parts(self, n: int, groups: Any) -> Sequence[np.ndarray]:
        """The rows of each worker: those of a group, or without groups a stretch of the rows."""
        if groups is None:
            workers = checks.count(workers=self.workers)
            if workers > n:
                raise DataError(f"workers={workers} and n_samples={n}: give as many examples as workers at least")
            parts = np.array_split(np.arange(n), workers)
        else:
            groups = np.asarray(groups)
            check_consistent_length(np.empty(n), groups)
            _, place = np.unique(groups, return_inverse=True)
            parts = [np.flatnonzero(place == i) for i in range(place.max() + 1)]
        if len(parts) > MOST_WORKERS:
            cure = "give fewer" if groups is None else "leave groups out and say workers=…, for the same trees"
            raise PlanError(f"{len(parts)} worker processes are more than {MOST_WORKERS}, the most here: {cure}")
        return parts

    def _predicted(self, X: Any, **options: Any) -> np.ndarray:
        check_is_fitted(self, "booster_")
        x = features(self, X, dtype=np.float64, allow_nd=False, **_MAY_LACK)
        return self.booster_.predict(xgboost().DMatrix(x), **options)


def xgboost() -> Any:
    """The library, or MissingExtra with the command that installs it."""
    try:
        import xgboost
    except ImportError as error:
        raise MissingExtra("xgboost", "trees", "training trees over workers") from error
    return xgboost
