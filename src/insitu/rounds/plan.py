"""Plan: what is to be learnt and how, checked together once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from insitu.core import checks, wire
from insitu.core.errors import PlanError
from insitu.core.part import plain
from insitu.core.protocols import Algorithm, Cohort, FitLearner, GradientLearner, Learner, Reduce, Stage, Stepwise
from insitu.core.types import Schema, Variables
from insitu.rounds.buffered import Buffered
from insitu.rounds.cohort import Everyone, Poisson
from insitu.rounds.policy import Policy
from insitu.rounds.world import World

LARGEST_BLOCK = 256
_GRADIENTS_OWN = (
    ("steps", None), ("clip", None), ("optimizer", "sgd"), ("batches", "anew"), ("keep_optimizer", False),
)  # fmt: skip
"""Options that a learner which fits by itself has no use for, with their usual values."""


@dataclass(frozen=True)
class Plan:
    """algorithm + learner + stages + reduce + cohort + policy + how to evaluate.

    algorithm         what clients and server do (:mod:`insitu.algorithms`)
    learner           the model (:mod:`insitu.learners`); None for methods that need none (KNN, KMeans)
    stages            done to every update on its way, in this order (:mod:`insitu.privacy`, :mod:`insitu.compress`)
    reduce            how updates become a total; None: as the algorithm says
    cohort            who takes part in a round
    policy            when a round is complete or void
    buffered          asynchronous rounds of K answers (:class:`~insitu.rounds.buffered.Buffered`), which draw their
                      clients by themselves; None: every round waits for its cohort
    world             simulated devices, links and availability (:class:`~insitu.rounds.world.World`): rounds then run
                      on a simulated clock, by which the policy judges; None: on the real one
    evaluate_every    evaluate after every so many rounds, and after the last; 0: never
    evaluate_cohort   which clients evaluate on their held-out part; None: all of them
    block             clients folded as one block; None: a quarter of the cohort, at most 256

    Raises PlanError, with the reason and the cure, where parts do not fit together.
    """

    algorithm: Algorithm
    learner: Any = None
    stages: tuple[Stage, ...] = ()
    reduce: Reduce = None  # type: ignore[assignment]
    cohort: Cohort = field(default_factory=Everyone)
    policy: Policy = field(default_factory=Policy)
    buffered: Buffered | None = None
    world: World | None = None
    evaluate_every: int = 1
    evaluate_cohort: Cohort | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.algorithm, Algorithm):
            raise PlanError(f"{self.algorithm!r} is not an algorithm: {_instance(self.algorithm, 'FedAvg(lr=0.1)')}")
        if isinstance(self.stages, Stage):
            raise PlanError(f"stages={_name(self.stages)}(…) is one stage: give a tuple, ({_name(self.stages)}(…),)")
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.reduce is None:
            object.__setattr__(self, "reduce", self.algorithm.reduce())
        if not isinstance(self.reduce, Reduce):
            raise PlanError(f"{self.reduce!r} is not a Reduce: {_instance(self.reduce, 'Mean()')}")
        for name in ("cohort", "evaluate_cohort"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, type) or not isinstance(value, Cohort)):
                raise PlanError(f"{name}={value!r} is not a cohort: {_instance(value, 'Uniform(10)')}")
        if not isinstance(self.policy, Policy):
            raise PlanError(f"policy={self.policy!r} is not a Policy: {_instance(self.policy, 'Policy()')}")
        if self.world is not None and not isinstance(self.world, World):
            raise PlanError(f"world={self.world!r} is not a World: {_instance(self.world, 'World(speed=100.0)')}")
        if isinstance(self.cohort, Poisson) and self.policy.over_select:
            raise PlanError(
                f"over_select={self.policy.over_select} asks for some more clients and keeps the first to answer, so"
                " that a client's chance is no longer its own rate: leave it out, or use Uniform"
            )
        if self.evaluate_every != 0:
            checks.count(evaluate_every=self.evaluate_every)
        if self.block is not None:
            checks.count(block=self.block)
        self._check_learner()
        self._check_everyone()
        self._check_stages()
        self._check_buffered()
        self._check_steps()
        if (reason := self.algorithm.refuses(self.reduce)) is not None:
            raise PlanError(reason)

    def _check_learner(self) -> None:
        name, needed = type(self.algorithm).__name__, self.algorithm.learner_needed
        if needed == "none":
            if self.learner is not None:
                raise PlanError(f"{name} needs no learner: leave learner={_name(self.learner)} out")
            return
        if self.learner is None:
            raise PlanError(f"{name} trains a model: give Plan({name}(…), learner=TorchLearner(net)) or another")
        if isinstance(self.learner, type):
            raise PlanError(f"learner={_name(self.learner)} is a class, give an instance of it")
        if isinstance(self.learner, GradientLearner):
            if self.learner.mixes and self.algorithm.config().get("batch_size", 0) == 1:
                raise PlanError(
                    "batch_size=1 gives batch norm no statistics: use a larger batch, or GroupNorm in its place"
                )
            return
        if not isinstance(self.learner, FitLearner):
            raise PlanError(
                f"learner={_name(self.learner)} is not a learner: wrap a PyTorch module in TorchLearner, a"
                " scikit-learn estimator in SklearnLearner, another object with fit in EstimatorLearner"
            )
        if needed == "gradient":
            raise PlanError(
                f"{name} needs gradients, and {_name(self.learner)} has none: use FedAvg or Gossip with it, or a"
                " learner with gradients (TorchLearner, LinearLearner, LogisticLearner)"
            )
        self._check_black_box()

    def _check_everyone(self) -> None:
        if not self.algorithm.needs_everyone:
            return
        name = type(self.algorithm).__name__
        for option in ("cohort", "buffered"):
            given = getattr(self, option)
            if given is not None and given != Everyone():
                raise PlanError(
                    f"{name}'s clients keep what one that joins later could not know, so each takes part in every"
                    f" round: leave {option}={given!r} out"
                )
        if self.policy.over_select:
            raise PlanError(
                f"{name} needs every client in every round: leave over_select={self.policy.over_select} out"
            )

    def _check_black_box(self) -> None:
        config = self.algorithm.config()
        for option, usual in _GRADIENTS_OWN:
            if config.get(option, usual) != usual:
                raise PlanError(
                    f"{option}={config[option]!r} is a matter of gradients, and {_name(self.learner)} fits by itself:"
                    " leave it out (epochs and batch_size are passed on)"
                )

    def _check_stages(self) -> None:
        for i, stage in enumerate(self.stages):
            if not isinstance(stage, Stage):
                raise PlanError(f"{stage!r} is not a stage: {_instance(stage, 'Clip(1.0)')}")
            if stage.changes_only and not (self.algorithm.tells_changes and isinstance(self.learner, GradientLearner)):
                raise PlanError(
                    f"{_name(stage)} is for changes of a model, and {type(self.algorithm).__name__} with"
                    f" {_name(self.learner)} tells none: leave it out, or use FedAvg with a learner that has gradients"
                    " (among neighbours: Choco); Half and Quantize take parameters as well"
                )
            if (reason := stage.refuses(self.algorithm, self.learner, self.stages[:i])) is not None:
                raise PlanError(reason)
            later = [s for s in self.stages[i + 1 :] if s.decodes != "each"]
            if stage.decodes == "each" and later:
                raise PlanError(
                    f"{_name(stage)} must be undone for each update, but {_name(later[0])} after it "
                    + (
                        "is undone only for the sum, where single updates can no longer be seen: put it last or leave"
                        " one out"
                        if later[0].decodes == "sum"
                        else f"would see its packed form: put {_name(later[0])} before it"
                    )
                )
            if stage.decodes == "sum" and self.reduce.needs == "each":
                raise PlanError(
                    f"reduce={_name(self.reduce)} must see each update, which {_name(stage)} hides in the sum:"
                    " use the mean"
                )

    def _check_buffered(self) -> None:
        if self.buffered is None:
            return
        if not isinstance(self.buffered, Buffered):
            raise PlanError(f"buffered={self.buffered!r} is not a Buffered: {_instance(self.buffered, 'Buffered(10)')}")
        name = type(self.algorithm).__name__
        if self.algorithm.retells:
            raise PlanError(
                f"buffered rounds give every client the same model, and {name} gives each its own: leave buffered out"
            )
        if not self.algorithm.tells_changes or not isinstance(self.learner, GradientLearner):
            raise PlanError(
                f"buffered rounds discount a client's change of the model by its age, and {name} with"
                f" {_name(self.learner)} tells none: use FedAvg, FedProx, Scaffold or FedSGD with a learner that has"
                " gradients, or leave buffered out"
            )
        if self.buffered.real:
            self._check_real_time()
        if self.cohort != Everyone() or self.policy.over_select or self.policy.deadline:
            raise PlanError(
                "buffered rounds draw their clients one by one and wait for nobody: leave cohort, over_select and"
                " deadline out, and say Buffered(size=…, concurrency=…)"
            )

    def _check_real_time(self) -> None:
        assert self.buffered is not None
        if self.world is not None:
            raise PlanError(
                'a world says how long simulated clients take, and with clock="real" they take as long as they take:'
                " leave world out, or the clock"
            )
        hidden = [stage for stage in self.stages if stage.decodes == "sum"]
        if hidden and self.buffered.staleness:
            raise PlanError(
                f'with clock="real" an answer is discounted by its age when it has arrived, where {_name(hidden[0])}'
                " shows the sum alone: say Buffered(…, staleness=0.0)"
            )

    def _check_steps(self) -> None:
        if not isinstance(self.algorithm, Stepwise):
            return
        name, count = type(self.algorithm).__name__, self.algorithm.steps_a_round()
        others = self.cohort != Everyone() or self.policy.over_select or self.policy.deadline
        if others or self.world is not None or self.buffered is not None:
            raise PlanError(
                f"{name} takes every step with all clients: leave cohort, over_select, deadline, world and buffered"
                " out, or use FedSGD, which is one step a round"
            )
        if self.stages and count > 1:
            raise PlanError(
                f"{_name(self.stages[0])} keeps its memory from round to round, and a round of {name} is {count} steps:"
                " say steps=1 (on ranks, Spmd(hook=…) compresses every step)"
            )

    def config(self) -> dict[str, Any]:
        """The plan as JSON-ready data."""
        return {
            "algorithm": self.algorithm.config(),
            "learner": None if self.learner is None else self.learner.config(),
            "stages": [stage.config() for stage in self.stages],
            "reduce": self.reduce.config(),
            "cohort": self.cohort.config(),
            "policy": self.policy.config(),
            "buffered": plain(self.buffered),
            "world": plain(self.world),
            "evaluate_every": self.evaluate_every,
            "evaluate_cohort": plain(self.evaluate_cohort),
            "block": self.block,
        }

    def digest(self, start: Variables | None) -> str:
        """SHA-256 over the config, the variables' structure and their first values, as hex."""
        text = json.dumps(self.config(), sort_keys=True, default=str)
        first = {} if start is None else vars(start)
        return sha256(f"{text}\n{wire.digest(first)}".encode()).hexdigest()

    def resolve(self, schema: Schema) -> Plan:
        """The plan whose learner knows the data's classes and features."""
        learner: Learner | None = self.learner
        return self if learner is None else replace(self, learner=learner.resolve(schema))

    def stops_early(self) -> bool:
        """Whether a round may be complete before all that were asked have been heard of, so that each counts by itself.

        In a world the policy has chosen before anybody starts. In real time an answer counts less the later it comes.
        """
        if self.buffered is not None and self.buffered.real:
            return True
        return bool(self.policy.over_select) and self.world is None

    def block_size(self, cohort: int) -> int:
        """Clients in a block: a function of the plan and the cohort's size, never of the number of workers."""
        return self.block or max(1, min(LARGEST_BLOCK, -(-cohort // 4)))


def _name(thing: Any) -> str:
    return thing.__name__ if isinstance(thing, type) else type(thing).__name__


def _instance(thing: Any, example: str) -> str:
    return f"{thing.__name__} is a class, give an instance of it" if isinstance(thing, type) else f"give {example}, say"
