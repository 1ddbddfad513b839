"""Compressor: the abstract class of stages that make an update smaller. pack → wire → unpack, leaf by leaf.

A compressor fills in three functions of one leaf: ``bytes_of`` (its formula), ``pack`` and ``unpack``. What travels is
what ``pack`` gives, small arrays in a plain tree, so that the bytes of the told update are the bytes on the wire.

The packed form of a leaf is a branch with arrays in it: ``{"plain": x}`` where the leaf travels as it is, else
``{"form": …, …}`` with what ``pack`` made. ``form`` is an array [0, *shape] without elements: it says the leaf's shape,
dtype, kind and device in the header that every array has, and weighs nothing. In a tree of packed leaves no other
branch holds an array directly, so no name that a model may use can be mistaken for one of ours.

All arithmetic is NumPy's on the CPU, in float32 (float64 for leaves in float64): the same bits for NumPy and torch
trees, and on every device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from insitu.core import arrays, checks, seeds, tree
from insitu.core.errors import UpdateError
from insitu.core.protocols import Algorithm, Stage
from insitu.core.tree import Tree
from insitu.core.types import Context, Update

PARTS = ("shared", "fitted")
"""The parts of an update that are trained: what compressors touch. Buffers, controls and counts travel as they are."""

Draw = Callable[[], np.random.Generator]
"""This leaf's random numbers of this round and client: from their start at every call, on both sides of the wire."""


@dataclass(frozen=True)
class Compressor(Stage):
    r"""Packs each trained leaf that has enough elements and gets smaller by it; integers travel as they are.

    With error feedback the client remembers, leaf by leaf, what has not been told yet, and adds it to the next update:

    .. math:: p_t = \Delta_t + e_t, \qquad \text{tell } C(p_t), \qquad e_{t+1} = p_t - C(p_t)

    feedback  whether to keep :math:`e_t`, as large as the model, in the client's memory: needed where C is biased
    smallest  leaves with fewer elements (biases, norms) travel as they are

    References: Seide et al., *1-Bit Stochastic Gradient Descent*, Interspeech 2014; Karimireddy et al., *Error Feedback
    Fixes SignSGD and other Gradient Compression Schemes*, ICML 2019, algorithm 2 (here e is in units of the update, the
    learning rate included where the update is a change of the model).
    """

    feedback: bool = field(default=True, kw_only=True)
    smallest: int = field(default=64, kw_only=True)
    decodes: ClassVar[Literal["nothing", "each", "sum"]] = "each"

    def __post_init__(self) -> None:
        checks.one_of((True, False), feedback=self.feedback)
        if self.smallest != 0 or isinstance(self.smallest, bool):
            checks.count(smallest=self.smallest)

    @abstractmethod
    def bytes_of(self, shape: tuple[int, ...], item: int) -> int:
        """The bytes of a packed leaf; ``item``: those of one number, 4 or 8."""

    @abstractmethod
    def pack(
        self, x: np.ndarray, draw: Draw, kept: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The packed leaf, and what to remember of it for the next round; ``kept`` is what was remembered."""

    @abstractmethod
    def unpack(self, packed: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], draw: Draw) -> np.ndarray:
        """The leaf again. Raises KeyError, ValueError or IndexError where it was not packed like this."""

    @classmethod
    @abstractmethod
    def example(cls) -> Compressor:
        """A small instance, with which the contract tests run."""

    def refuses(self, algorithm: Algorithm, learner: Any, before: Sequence[Stage]) -> str | None:
        name, method = type(self).__name__, type(algorithm).__name__
        if algorithm.learner_needed == "none":
            return f"{name} makes trained parameters smaller, and {method} tells none: leave it out"
        if self.feedback and algorithm.retells:
            return (
                f"{method} tells by itself in the next round what {name} left out in this one, and error feedback"
                f" would tell it a second time: say {name}(…, feedback=False)"
            )
        if self.feedback and algorithm.tells_parts:
            return (
                f"{method} tells another part of the model in each round, to which what {name} left out of this one"
                f" does not belong: say {name}(…, feedback=False)"
            )
        if self.feedback and (others := [s for s in before if isinstance(s, Compressor)]):
            return (
                f"what {name} loses of an update that {type(others[-1]).__name__} has packed before it is of no use in"
                f" the next round, which is packed otherwise: say {name}(…, feedback=False)"
            )
        return None

    def encode(self, update: Update, memory: Tree | None, context: Context) -> tuple[Update, Tree | None]:
        value, kept = dict(update.value), dict(memory or {})
        for part in PARTS:
            if part in value:
                value[part], own = self._packed(value[part], kept.get(part, {}), part, context)
                if own:
                    kept[part] = own
        return Update(value, update.weight, update.metrics), kept or None

    def decode_each(self, update: Update, context: Context) -> Update:
        value = {
            part: self._unpacked(told, part, context) if part in PARTS else told for part, told in update.value.items()
        }
        return Update(value, update.weight, update.metrics)

    def _packed(self, node: Any, kept: Mapping[str, Any], path: str, context: Context) -> tuple[Any, dict[str, Any]]:
        """The tree with its leaves packed, and what is kept of it; leaves that are not told this time keep theirs."""
        if not tree.is_branch(node):
            return self._leaf(node, kept, self._draw(path, context))
        told, after = {}, dict(kept)
        for key, x in node.items():
            told[key], own = self._packed(x, kept.get(key, {}), f"{path}/{key}", context)
            if own:
                after[key] = own
        return told, after

    def _leaf(self, x: Any, kept: Mapping[str, Any], draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
        shape, dtype = tuple(x.shape), working(x)
        size = math.prod(shape)
        small = size < max(1, self.smallest) or not arrays.is_float(x)
        if small or self.bytes_of(shape, dtype.itemsize) >= x.nbytes:
            return {"plain": x}, {}
        meant = arrays.asnumpy(x).astype(dtype, copy=False)
        if self.feedback and "lost" in kept:
            meant = meant + arrays.asnumpy(kept["lost"])
        packed, own = self.pack(meant, draw, kept)
        if self.feedback:
            own = {**own, "lost": meant - self.unpack(packed, shape, dtype, draw)}
        return {"form": arrays.copy(x[None][:0]), **packed}, own

    def _unpacked(self, node: Any, path: str, context: Context) -> Any:
        wrong = f"client {context.client!r}: {path} of its update was not packed by {self.part_name()}"
        if not tree.is_branch(node):
            raise UpdateError(f"{wrong}: all clients must have the server's plan")
        branches = [tree.is_branch(x) for x in node.values()]
        if all(branches):
            return {key: self._unpacked(x, f"{path}/{key}", context) for key, x in node.items()}
        if any(branches):
            raise UpdateError(f"{wrong}: all clients must have the server's plan")
        if list(node) == ["plain"]:
            return node["plain"]
        try:
            form, packed = node["form"], {key: x for key, x in node.items() if key != "form"}
            shape = tuple(form.shape[1:])
            x = self.unpack(packed, shape, working(form), self._draw(path, context))
            return arrays.cast(x.reshape(shape), form)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise UpdateError(f"{wrong} ({type(error).__name__}: {error})") from error

    def _draw(self, path: str, context: Context) -> Draw:
        purpose = f"{self.part_name()}/{path}"
        return lambda: seeds.generator(context.seed, context.round, context.client, purpose)


def working(x: Any) -> np.dtype[Any]:
    """In which numbers a leaf is worked with: float64 for one in float64, else float32."""
    return np.dtype(np.float64 if x.dtype.itemsize > 4 else np.float32)


def numbers(x: Any, count: int, dtype: Any) -> np.ndarray:
    """A packed array as so many numbers of this dtype [count]. Raises ValueError where it is something else."""
    found = arrays.asnumpy(x)
    if found.size != count or found.dtype != np.dtype(dtype):
        raise ValueError(f"{found.dtype}{list(found.shape)} in place of {count} numbers of {np.dtype(dtype)}")
    return found.reshape(-1)
