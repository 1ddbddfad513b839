"""Optimisers as (init, update) pairs on trees: the same ones work on clients and on the server, in NumPy and in torch.

``init(params) → state`` and ``update(grads, state, params, lr) → (params, state)``; nothing is changed in place, and
the learning rate and the step count are arrays, so that one compiled step serves every round and every lane.
The formulas and defaults are those of the papers named below, and of ``torch.optim`` where they agree with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from insitu.core import arrays, checks, tree
from insitu.core.arrays import Array
from insitu.core.errors import PlanError
from insitu.core.part import Part
from insitu.core.tree import Tree


class Optimizer(Part, ABC):
    """One optimiser. Subclasses are frozen dataclasses of hyper-parameters; the learning rate comes with each call."""

    slots: ClassVar[tuple[str, ...]] = ()
    """Names of the running averages kept for each parameter."""

    @classmethod
    def part_name(cls) -> str:
        return cls.__name__.lower()

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.name == "epsilon":
                checks.positive(epsilon=value)
            elif f.name == "weight_decay":
                checks.not_negative(weight_decay=value)
            elif not isinstance(value, bool) and not 0 <= checks.number(**{f.name: value}) < 1:
                raise PlanError(f"Expected 0 <= {f.name}={value!r} < 1")

    def init(self, params: Tree) -> dict[str, Any]:
        """The state before the first step: zeros, and a count of steps for those that correct their bias."""
        if not self.slots:
            return {}
        wide = tree.map(arrays.widen, params)  # squares of half-precision gradients would be lost in half precision
        state: dict[str, Any] = {name: tree.zeros_like(wide) for name in self.slots}
        if "second" in self.slots:
            state["count"] = arrays.scalar(0, tree.first_leaf(wide))
        return state

    @abstractmethod
    def update(self, grads: Tree, state: Tree, params: Tree, lr: Array) -> tuple[Any, Any]:
        """The parameters and state after one step against ``grads`` (shapes as ``params``)."""


@dataclass(frozen=True)
class Collect(Optimizer):
    """Goes nowhere and keeps the gradient, for methods whose clients tell it. Not one that a user names."""

    def init(self, params: Tree) -> dict[str, Any]:
        return {"gradient": tree.zeros_like(params)}

    def update(self, grads: Tree, state: Tree, params: Tree, lr: Array) -> tuple[Any, Any]:
        return params, {"gradient": grads}


def _descend(params: Tree, direction: Tree, lr: Array) -> Any:
    return tree.map(lambda p, d: p - arrays.cast(arrays.cast(lr, d) * d, p), params, direction)


def _average(old: Tree, new: Tree, keep: float) -> Any:
    return tree.map(lambda o, n: keep * o + (1 - keep) * arrays.widen(n), old, new)


@dataclass(frozen=True)
class Sgd(Optimizer):
    """w ← w − lr · (g + weight_decay · w)."""

    weight_decay: float = 0.0

    def update(self, grads: Tree, state: Tree, params: Tree, lr: Array) -> tuple[Any, Any]:
        return _descend(params, _decayed(grads, params, self.weight_decay), lr), state


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Heavy ball (Polyak 1964): v ← beta · v + g; w ← w − lr · v."""

    beta: float = 0.9
    weight_decay: float = 0.0
    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def update(self, grads: Tree, state: Tree, params: Tree, lr: Array) -> tuple[Any, Any]:
        grads = _decayed(grads, params, self.weight_decay)
        velocity = tree.map(lambda v, g: self.beta * v + arrays.widen(g), state["velocity"], grads)
        return _descend(params, self.direction(grads, velocity), lr), {"velocity": velocity}

    def direction(self, grads: Tree, velocity: Tree) -> Any:
        """Where the step goes."""
        return velocity


@dataclass(frozen=True)
class Nesterov(Momentum):
    """Nesterov's momentum as in ``torch.optim.SGD(nesterov=True)``: w ← w − lr · (g + beta · v)."""

    def direction(self, grads: Tree, velocity: Tree) -> Any:
        return tree.map(lambda g, v: arrays.widen(g) + self.beta * v, grads, velocity)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011): s ← s + g²; w ← w − lr · g / (√s + epsilon)."""

    epsilon: float = 1e-10
    slots: ClassVar[tuple[str, ...]] = ("squares",)

    def update(self, grads: Tree, state: Tree, params: Tree, lr: Array) -> tuple[Any, Any]:
        squares = tree.map(lambda s, g: s + arrays.widen(g) ** 2, state["squares"], grads)
        step = tree.map(lambda g, s: arrays.widen(g) / (arrays.sqrt(s) + self.epsilon), grads, squares)
        return _descend(params, step, lr), {"squares": squares}


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), bias-corrected: w ← w − lr · m̂ / (√v̂ + epsilon)."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    slots: ClassVar[tuple[str, ...]] = ("first", "second")

    def update(self, grads: Tree, state: Tree, params: Tree, lr: Array) -> tuple[Any, Any]:
        count = state["count"] + 1
        first = _average(state["first"], grads, self.beta1)
        second = self.second_moment(state["second"], grads)
        one, two = 1 - self.beta1**count, 1 - self.beta2**count
        step = tree.map(
            lambda m, v: (m / arrays.cast(one, m)) / (arrays.sqrt(v / arrays.cast(two, v)) + self.epsilon),
            first,
            second,
        )
        state = {"first": first, "second": second, "count": count}
        return _descend(self.shrink(params, lr), step, lr), state

    def second_moment(self, old: Tree, grads: Tree) -> Any:
        """The running average of squared gradients."""
        return tree.map(lambda v, g: self.beta2 * v + (1 - self.beta2) * arrays.widen(g) ** 2, old, grads)

    def shrink(self, params: Tree, lr: Array) -> Any:
        """The parameters before the step."""
        return params


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): w ← (1 − lr · weight_decay) · w first."""

    weight_decay: float = 0.01

    def shrink(self, params: Tree, lr: Array) -> Any:
        return tree.map(lambda p: p * (1 - arrays.cast(lr, p) * self.weight_decay), params)


@dataclass(frozen=True)
class Yogi(Adam):
    """Yogi (Zaheer et al. 2018): v ← v − (1 − beta2) · sign(v − g²) · g²: additive where Adam is multiplicative.

    ``epsilon`` is 1e-3, as in the paper and in *Adaptive Federated Optimization* (Reddi et al. 2021).
    """

    epsilon: float = 1e-3

    def second_moment(self, old: Tree, grads: Tree) -> Any:
        squares = tree.map(lambda g: arrays.widen(g) ** 2, grads)
        return tree.map(lambda v, s: v - (1 - self.beta2) * arrays.sign(v - s) * s, old, squares)


def _decayed(grads: Tree, params: Tree, decay: float) -> Any:
    return tree.map(lambda g, p: g + decay * p, grads, params) if decay else grads


OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.part_name(): cls for cls in (Sgd, Momentum, Nesterov, Adagrad, Adam, AdamW, Yogi)
}


_MADE: dict[str, Optimizer] = {}


def optimizer(choice: str | Optimizer, argument: str = "optimizer") -> Optimizer:
    """An optimiser by its name, or the one given; ``argument`` is what an error calls it."""
    if isinstance(choice, Optimizer):
        return choice
    if choice not in _MADE:
        checks.one_of(tuple(OPTIMIZERS), **{argument: choice})
        _MADE[choice] = OPTIMIZERS[choice]()
    return _MADE[choice]
