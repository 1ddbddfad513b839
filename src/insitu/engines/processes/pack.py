"""Any object ⇄ a pickled head and, beside it, the bytes of its large arrays.

Only between processes that we started ourselves: whoever can write a pickle can run code. What is defined in the script
itself (``__main__``: a script without a guard, a notebook, the prompt) travels by value, thanks to cloudpickle.
"""

from __future__ import annotations

import inspect
import io
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import cloudpickle
import numpy as np

from insitu.core import arrays

BESIDE = 4096
"""Bytes from which an array goes beside the head, where it is not copied; a smaller one costs less inside."""
DEEP = 8
"""How many steps a search for what cannot be pickled goes into an object."""


@dataclass(frozen=True)
class Packed:
    """An object as bytes: the pickle's head, and the buffers that it refers to, in their order."""

    head: bytes | memoryview
    buffers: Sequence[memoryview] = ()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle with arrays of either kind out of band."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray and not obj.dtype.hasobject and not obj.flags.forc:
            return np.ascontiguousarray(obj).__reduce_ex__(5)
        if arrays.is_torch(obj) and (array := _plain(obj)) is not None:
            return arrays.to_torch, (array,)
        return super().reducer_override(obj)


def pack(value: Any) -> Packed:
    """The object as bytes; its large arrays are not copied. Raises whatever its parts raise when they are pickled."""
    buffers: list[memoryview] = []

    def beside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BESIDE:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=beside).dump(value)
    return Packed(file.getvalue(), buffers)


def unpack(packed: Packed) -> Any:
    """The object again; its large arrays are views of the buffers."""
    return pickle.loads(packed.head, buffers=packed.buffers)


class _Adopting(pickle.Unpickler):
    """Functions of the parent's script find their globals in this process's ``__main__``, as they did in the parent's.

    cloudpickle gives them a namespace of their own, which is not that of any module; ``torch.compile`` looks them up by
    module and name, and fails to find them.
    """

    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name)
        return _at_home if (module, name) == ("cloudpickle.cloudpickle", "_make_function") else found


def adopt(packed: Packed) -> Any:
    """The object again, in a worker: what the parent's script defines becomes part of the worker's ``__main__``."""
    return _Adopting(io.BytesIO(packed.head), buffers=packed.buffers).load()


def _at_home(code: Any, namespace: dict[str, Any], *rest: Any) -> FunctionType:
    if namespace.get("__name__") == "__main__":
        namespace = vars(sys.modules["__main__"])
    made: FunctionType = cloudpickle.cloudpickle._make_function(code, namespace, *rest)
    return made


def unpicklable(value: Any, name: str) -> str | None:
    """What in ``value`` (called ``name``) cannot be sent to a worker process, with the cure; None where all can."""
    if (error := _refusal(value)) is None:
        return None
    return (
        f"{_culprit(value, name, DEEP)} cannot be sent to worker processes ({type(error).__name__}: {error}): open"
        " files, locks and connections inside the function that uses them, or use engine='inline' or 'vectorized'"
    )


def _plain(tensor: Any) -> np.ndarray | None:
    """The memory of a tensor that is nothing but numbers on the CPU; None for others, which torch pickles itself."""
    plain = (
        type(tensor).__name__ == "Tensor"
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        and not tensor.is_sparse
        and tensor.is_contiguous()
    )
    try:
        return tensor.numpy() if plain else None
    except (TypeError, RuntimeError):
        return None  # bfloat16, which NumPy lacks, and tensors with a conjugation pending


def _refusal(value: Any) -> Exception | None:
    try:
        pack(value)
    except Exception as error:
        return error
    return None


def _culprit(value: Any, name: str, depth: int) -> str:
    """The path to the innermost part that cannot be pickled, with its type."""
    if depth:
        for step, part in _parts(value):
            if part is not value and _refusal(part) is not None:
                return _culprit(part, f"{name}{step}", depth - 1)
    return f"{name} (a {type(value).__name__})"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a pickle of the object has to hold, as far as it can be told from outside."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, FunctionType):
        yield from _uses(value)
    elif not isinstance(value, type):
        yield from ((f".{key}", part) for key, part in getattr(value, "__dict__", {}).items())


def _uses(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables that a function refers to, outside of it."""
    found = inspect.getclosurevars(function)
    for key, part in {**found.nonlocals, **found.globals}.items():
        yield f", which uses {key}", part
