"""Arithmetic on trees: nested dicts of arrays, NumPy or torch alike.

A tree is a ``dict`` whose values are trees or arrays. Two trees are alike when their keys are, in any order; the
order of the first argument decides the order of the result. Nothing here changes its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from insitu.core import arrays
from insitu.core.arrays import Array

Tree = Mapping[str, Any]
"""A nested dict of arrays."""


_BRANCHES: dict[type, bool] = {}


def is_branch(x: Any) -> bool:
    """Whether ``x`` is a mapping of trees, and not a leaf.

    Remembered by type: an abstract class answers slowly, and this is asked for each leaf of each client's update.
    """
    kind = type(x)
    if kind not in _BRANCHES:
        _BRANCHES[kind] = isinstance(x, Mapping)
    return _BRANCHES[kind]


def map(f: Callable[..., Any], first: Any, *others: Any) -> Any:
    """``f`` applied to every leaf, or to the leaves of several trees that are alike."""
    if is_branch(first):
        for other in others:
            if not is_branch(other) or other.keys() != first.keys():
                raise ValueError(f"trees differ: keys {describe(first)} against {describe(other)}")
        return {key: map(f, first[key], *(other[key] for other in others)) for key in first}
    return f(first, *others)


def describe(tree: Any) -> str:
    """The keys of a tree's first level, or the type of a leaf: short enough for an error message."""
    if isinstance(tree, Mapping):
        keys = [str(key) for key in tree]
        return "{" + ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "") + "}"
    return type(tree).__name__


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, the keys joined by ``/``."""
    if is_branch(tree):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, tree


def values(tree: Any) -> list[Any]:
    """Every leaf, in order."""
    if not is_branch(tree):
        return [tree]
    found: list[Any] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Any]) -> None:
    for value in tree.values():
        if is_branch(value):
            _gather(value, found)
        else:
            found.append(value)


def first_leaf(tree: Any) -> Any:
    """The first leaf, or None for a tree without leaves: what tells a tree's kind, dtype and device."""
    if not is_branch(tree):
        return tree
    for value in tree.values():
        if not is_branch(value):
            return value
        if (leaf := first_leaf(value)) is not None:
            return leaf
    return None


def add(a: Tree, b: Tree) -> Any:
    """a + b."""
    return map(lambda x, y: x + y, a, b)


def subtract(a: Tree, b: Tree) -> Any:
    """a - b."""
    return map(lambda x, y: x - y, a, b)


def scale(a: Tree, factor: float) -> Any:
    """factor · a."""
    return map(lambda x: x * factor, a)


def zeros_like(a: Tree) -> Any:
    """Zeros in the shape of ``a``."""
    return map(arrays.zeros_like, a)


def copy(a: Tree) -> Any:
    """A tree that shares no memory with ``a``."""
    return map(arrays.copy, a)


def cast(a: Tree, reference: Tree) -> Any:
    """``a`` in the dtypes of ``reference``."""
    return map(arrays.cast, a, reference)


def like(a: Tree, reference: Array) -> Any:
    """``a`` as arrays of the kind and device of one ``reference`` array."""
    return map(lambda x: arrays.like(x, reference), a)


def asnumpy(a: Tree) -> Any:
    """``a`` as NumPy arrays."""
    return map(arrays.asnumpy, a)


def nbytes(a: Any) -> int:
    """The bytes of all leaves together: what the tree weighs on a wire, without headers."""
    return sum([getattr(x, "nbytes", 8) for x in values(a) if x is not None])


def square_norm(a: Tree) -> Array:
    """The sum of the squares of all elements, as an array without dimensions."""
    squares = [(x * x).sum() for x in values(a)]
    return sum(squares[1:], start=squares[0])


def norm(a: Tree) -> float:
    """The Euclidean norm of all elements together."""
    return math.sqrt(float(square_norm(a))) if values(a) else 0.0


def flatten(a: Tree) -> np.ndarray:
    """All elements as one NumPy vector, leaf after leaf in the tree's order."""
    flat = [arrays.asnumpy(x).reshape(-1) for x in values(a)]
    return np.concatenate(flat) if flat else np.zeros(0)


def unflatten(vector: np.ndarray, reference: Tree) -> Any:
    """The tree in the shape of ``reference`` whose :func:`flatten` is ``vector``."""
    sizes = [int(np.prod(tuple(x.shape))) for x in values(reference)]
    if sum(sizes) != len(vector):
        raise ValueError(f"a vector of {len(vector)} elements does not fill a tree of {sum(sizes)}")
    pieces = iter(np.split(np.asarray(vector), np.cumsum(sizes)[:-1]))
    return map(lambda x: arrays.cast(arrays.like(next(pieces).reshape(tuple(x.shape)).copy(), x), x), reference)


def not_finite(a: Tree) -> str | None:
    """The path of the first leaf that holds NaN or Inf, or None."""
    if all(arrays.all_finite(x) for x in values(a)):
        return None
    return next((path for path, x in leaves(a) if not arrays.all_finite(x)), None)
