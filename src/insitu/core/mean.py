"""The default Reduce: the weighted mean of every part, integers by their maximum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NotRequired, TypedDict

import numpy as np

from insitu.core import arrays, tree
from insitu.core.errors import UpdateError
from insitu.core.protocols import Reduce
from insitu.core.stored import Stored, together
from insitu.core.types import Context, Total, Update

PIECE = 2**16
"""Numbers that are multiplied and added together."""


class Sum(TypedDict):
    """An accumulator of constant size: Σ w·v and Σ w of each part, and how many updates are in it.

    ``own``: its arrays were made here, and nobody else has them.
    """

    value: dict[str, Any]
    weight: dict[str, float]
    clients: int
    own: NotRequired[bool]


@dataclass(frozen=True)
class Mean(Reduce):
    r"""The mean of the clients' values, each part weighted by its own weight.

    .. math:: \bar v_p = \sum_i w_{ip} v_{ip} \Big/ \sum_i w_{ip}

    Sums of half-precision values are kept in float32. An integer leaf (a step counter in a batch norm) becomes the
    maximum over clients, since a mean of counts is no count.
    """

    def zero(self) -> Sum:
        return {"value": {}, "weight": {}, "clients": 0}

    def add(self, accumulator: Sum, update: Update, client: str) -> Sum:
        for part, value in update.value.items():
            if part in accumulator["value"]:
                alike(accumulator["value"][part], value, part, client)
        for part, value in update.value.items():
            weight = update.weight[part]
            if part in accumulator["value"]:
                _fold(accumulator["value"][part], value, weight)
            else:
                accumulator["value"][part] = tree.map(lambda x, w=weight: _weighted(x, w), value)
            accumulator["weight"][part] = accumulator["weight"].get(part, 0.0) + weight
        accumulator["clients"] += 1
        return accumulator

    def add_stacked(self, accumulator: Sum, value: dict[str, Any], weight: Mapping[str, list[float]]) -> Sum:
        """K updates at once: every leaf has K in front, every part K weights. Tensors of floats only."""
        for part, stack in value.items():
            total = accumulator["value"].setdefault(
                part, tree.map(lambda x: arrays.zeros_like(arrays.widen(x[0]).contiguous()), stack)
            )
            factors = tree.map(lambda x, w=weight[part]: arrays.cast(np.asarray(w), x), total)
            tree.map(
                lambda s, x, w: s.view(-1).addmv_(arrays.widen(x).reshape(len(x), -1).mT, w), total, stack, factors
            )
            accumulator["weight"][part] = accumulator["weight"].get(part, 0.0) + sum(weight[part])
        accumulator["clients"] += len(next(iter(weight.values())))
        return accumulator

    def merge(self, accumulator: Sum, other: Sum) -> Sum:
        for part, value in other["value"].items():
            if part in accumulator["value"]:
                alike(accumulator["value"][part], value, part, "a block")
        for part, value in other["value"].items():
            if part in accumulator["value"]:
                _fold(accumulator["value"][part], value, 1.0)
            else:
                accumulator["value"][part] = value
                accumulator.pop("own", None)
            accumulator["weight"][part] = accumulator["weight"].get(part, 0.0) + other["weight"][part]
        accumulator["clients"] += other["clients"]
        return accumulator

    def adds_stored(self) -> bool:
        return type(self).add is Mean.add and type(self).merge is Mean.merge

    def add_stored(self, accumulator: Sum, block: Sequence[tuple[Update, str]]) -> tuple[Sum, dict[str, UpdateError]]:
        told: dict[str, list[tuple[Any, float]]] = {}
        refused: dict[str, UpdateError] = {}
        for update, client in block:
            try:
                for part, value in update.value.items():
                    if part in told:
                        alike(told[part][0][0], value, part, client)
            except UpdateError as error:
                refused[client] = error
                continue
            for part, value in update.value.items():
                told.setdefault(part, []).append((value, update.weight[part]))
        for part, some in told.items():
            if part in accumulator["value"]:
                alike(accumulator["value"][part], some[0][0], part, "a block")
        for part, some in told.items():
            values, weights = [value for value, _ in some], [weight for _, weight in some]
            accumulator["value"][part] = _fold_stored(accumulator["value"].get(part), values, weights)
            weight = 0.0
            for one in weights:  # as `add` does it: what `sum` does with floats depends on Python's version
                weight += one
            accumulator["weight"][part] = accumulator["weight"].get(part, 0.0) + weight
        accumulator["own"] = accumulator.get("own", accumulator["clients"] == 0)
        accumulator["clients"] += len(block) - len(refused)
        return accumulator, refused

    def finish(self, accumulator: Sum, context: Context) -> Total:
        weights = {part: weight for part, weight in accumulator["weight"].items() if weight > 0}
        own = accumulator.get("own", False)
        divided = _divided_in_place if own else _divided
        value = {part: tree.map(partial(divided, by=w), accumulator["value"][part]) for part, w in weights.items()}
        return Total(value, weights, accumulator["clients"], context.population, spare=own)


def _weighted(x: Any, weight: float) -> Any:
    return arrays.widen(x) * weight if arrays.is_float(x) else arrays.copy(x)


def _fold(target: Any, value: Mapping[str, Any], weight: float) -> None:
    """target += weight · value, in place, without a copy of the model. ``alike`` has looked at both."""
    for key, x in value.items():
        if tree.is_branch(x):
            _fold(target[key], x, weight)
        elif arrays.is_torch(x) and x.is_floating_point():
            target[key].add_(arrays.widen(x), alpha=weight)
        else:
            target[key] = _folded(target[key], x, weight)


def _folded(target: Any, x: Any, weight: float) -> Any:
    """An array with another one added, or the larger elements of two of integers."""
    if not arrays.is_float(x):
        return arrays.maximum(target, x)
    return target.add_(arrays.widen(x), alpha=weight) if arrays.is_torch(x) else _added(target, x, weight)


def _fold_stored(target: Any, values: Sequence[Any], weights: Sequence[float]) -> Any:
    """The sum of a block, added to ``target`` where there is one: each piece of it before the next is read."""
    if tree.is_branch(values[0]):
        own = {} if target is None else target
        for key in values[0]:
            own[key] = _fold_stored(own.get(key), [value[key] for value in values], weights)
        return own
    leaves: Sequence[Stored] = values
    flat = None if target is None else target.reshape(-1)
    for at, pieces in together(leaves):
        block: Any = None
        for piece, weight in zip(pieces, weights, strict=True):
            block = _weighted(piece, weight) if block is None else _folded(block, piece, weight)
        if flat is None:
            flat = arrays.empty(prod(leaves[0].shape), block)
        own = flat[at : at + len(block)]
        after = block if target is None else _folded(own, block, 1.0)
        if after is not own:
            own[:] = after
    assert flat is not None  # there is one piece at least
    return flat.reshape(leaves[0].shape)


def _divided(x: Any, by: float) -> Any:
    return x / by if arrays.is_float(x) else x


def _divided_in_place(x: Any, by: float) -> Any:
    if arrays.is_float(x):
        x /= by
    return x


def _added(target: Any, x: Any, weight: float) -> Any:
    """target + weight · x in place, piece by piece: what is multiplied stays in the processor's cache."""
    if x.size <= PIECE or not (target.flags.c_contiguous and x.flags.c_contiguous):
        target += arrays.widen(x) * weight
        return target
    flat, own = target.reshape(-1), x.reshape(-1)
    for at in range(0, flat.size, PIECE):
        flat[at : at + PIECE] += arrays.widen(own[at : at + PIECE]) * weight
    return target


def alike(target: Any, value: Any, path: str, client: str) -> None:
    """Raises UpdateError, before anything is added, where names or shapes differ: arrays would broadcast silently."""
    if not _same(target, value):
        _refuse(target, value, path, client)


def _same(target: Any, value: Any) -> bool:
    if not tree.is_branch(value):
        return not tree.is_branch(target) and bool(value.shape == target.shape)
    if not tree.is_branch(target) or target.keys() != value.keys():
        return False
    for key, x in value.items():  # noqa: SIM110  # a generator costs more than all else here, twice a client
        if not _same(target[key], x):
            return False
    return True


def _refuse(target: Any, value: Any, path: str, client: str) -> None:
    """Looks again, to name the first difference."""
    if isinstance(value, Mapping) and isinstance(target, Mapping):
        if target.keys() != value.keys():
            raise UpdateError(
                f"client {client!r}: {path} of its update has {tree.describe(value)}, not"
                f" {tree.describe(target)}: all clients must tell the same arrays"
            )
        for key, x in value.items():
            _refuse(target[key], x, f"{path}/{key}", client)
    elif isinstance(value, Mapping) or isinstance(target, Mapping) or tuple(value.shape) != tuple(target.shape):
        found = [tree.describe(x) if isinstance(x, Mapping) else list(x.shape) for x in (value, target)]
        raise UpdateError(f"client {client!r}: {path} of its update has the shape {found[0]}, not {found[1]}")
