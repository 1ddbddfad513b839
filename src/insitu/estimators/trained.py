"""What the classifier and the regressor share: their arguments, and a run that trains whatever they were given."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from insitu.algorithms.fedavg import FedAvg
from insitu.estimators.inputs import EVERYBODY, clients_of, features, seed_of
from insitu.estimators.learner import Task, is_own, learner_for
from insitu.rounds.cohort import Everyone
from insitu.rounds.plan import Plan
from insitu.run import run


class Trained(BaseEstimator):
    """A model trained by rounds over clients. The constructor stores its arguments; ``fit`` checks them."""

    # How scikit-learn before 1.6 was told what its own checks must give the constructor.
    _required_parameters: ClassVar[list[str]] = ["estimator"]

    def __init__(
        self,
        estimator: Any,
        algorithm: Any = None,
        *,
        rounds: int = 30,
        clients: int = 10,
        cohort: Any = None,
        stages: tuple[Any, ...] = (),
        reduce: Any = None,
        engine: Any = None,
        random_state: Any = 0,
        store: Any = None,
        verbose: bool = False,
    ) -> None:
        self.estimator = estimator
        self.algorithm = algorithm
        self.rounds = rounds
        self.clients = clients
        self.cohort = cohort
        self.stages = stages
        self.reduce = reduce
        self.engine = engine
        self.random_state = random_state
        self.store = store
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep``: with those of a scikit-learn estimator, as ``estimator__alpha``."""
        # An object of one's own has a get_params too, which gives arrays.
        return super().get_params(deep=deep and not is_own(self.estimator))

    def __sklearn_clone__(self) -> Any:
        if not is_own(self.estimator):
            return super().__sklearn_clone__()
        bare = copy.copy(self)
        bare.estimator = None
        clone = bare.__sklearn_clone__()
        clone.estimator = copy.deepcopy(self.estimator)
        return clone

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        # scikit-learn's diagram asks what is within for its settings, which an object of one's own has not.
        return {"text/plain": repr(self)} if is_own(self.estimator) else super()._repr_mimebundle_(**kwargs)

    def _train(self, task: Task, x: np.ndarray, y: np.ndarray, groups: Any) -> Any:
        learner, seed = learner_for(self.estimator, task), seed_of(self.random_state)
        plan = Plan(
            FedAvg() if self.algorithm is None else self.algorithm,
            learner,
            tuple(self.stages),
            self.reduce,
            Everyone() if self.cohort is None else self.cohort,
            EVERYBODY,
        )
        clients = clients_of(x, y, groups, self.clients, seed)
        observers = None if self.verbose else ()
        result = run(
            plan, clients, rounds=self.rounds, engine=self.engine, seed=seed, store=self.store, observers=observers
        )
        if result.status != "finished":
            warnings.warn(
                f"fit was interrupted and has the model of round {result.rounds} of {self.rounds}", stacklevel=3
            )
        # A trained model keeps nobody's data: it may be pickled and handed on.
        self.result_ = replace(result, clients=None)
        self.history_ = result.history
        return self

    def _features(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "result_")
        return features(self, X)
