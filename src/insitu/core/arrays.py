"""The few array functions that differ between NumPy and torch, dispatched on type without importing torch.

Everything else that insitu does to arrays (``+``, ``*``, indexing, ``.reshape``, ``.shape``) is spelled alike in both.
An *array* below is a ``numpy.ndarray`` (or NumPy scalar) or a ``torch.Tensor``; whoever has tensors has imported torch,
so it is looked up among the loaded modules and never imported here.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from math import isfinite
from typing import Any

import numpy as np

from insitu.core import backed
from insitu.core.errors import MissingExtra, WireError

SHORT = 64
"""Numbers that Python adds up faster than torch begins to."""

Array = Any
"""A ``numpy.ndarray`` or a ``torch.Tensor``."""


_TENSORS: dict[type, bool] = {}
"""Which types are torch tensors, of those that were asked for: a type that is known before torch is none."""


def is_torch(x: Any) -> bool:
    """Whether ``x`` is a torch tensor."""
    kind = type(x)
    if kind not in _TENSORS:
        torch = sys.modules.get("torch")
        _TENSORS[kind] = torch is not None and issubclass(kind, torch.Tensor)
    return _TENSORS[kind]


def is_array(x: Any) -> bool:
    """Whether ``x`` is an array of either kind."""
    return is_torch(x) or isinstance(x, (np.ndarray, np.generic))


def asnumpy(x: Any) -> np.ndarray:
    """``x`` as a NumPy array, without a copy where the memory can be shared."""
    if is_torch(x):
        x = x.detach().cpu()
        return np.asarray(x.float().numpy() if x.dtype == sys.modules["torch"].bfloat16 else x.numpy())
    return np.asarray(x)


def like(x: Any, reference: Array) -> Array:
    """``x`` as an array of the same kind, on the same device, as ``reference``; the dtype of ``x`` is kept."""
    if is_torch(reference):
        torch = sys.modules["torch"]
        return torch.as_tensor(x, device=reference.device)
    return asnumpy(x)


def cast(x: Array, reference: Array) -> Array:
    """The array ``x`` in the dtype of ``reference``; a NumPy ``x`` becomes a tensor where that is one."""
    if is_torch(reference) and not is_torch(x):
        return sys.modules["torch"].as_tensor(x, dtype=reference.dtype, device=reference.device)
    if x.dtype == reference.dtype:
        return x
    return x.to(reference.dtype) if is_torch(x) else x.astype(reference.dtype)


def is_float(x: Array) -> bool:
    """Whether the array holds floating-point numbers (of any width)."""
    return bool(x.is_floating_point()) if is_torch(x) else np.issubdtype(x.dtype, np.floating)


def scalar(value: float, reference: Array | None) -> Array:
    """``value`` as an array without dimensions, of the kind, dtype and device of ``reference`` (None: NumPy)."""
    if is_torch(reference):
        torch = sys.modules["torch"]
        return torch.tensor(value, dtype=reference.dtype, device=reference.device)  # type: ignore[union-attr]
    return np.asarray(value, dtype=None if reference is None else reference.dtype)


_zeros: dict[Any, Array] = {}


def zero(reference: Array, *, whole: bool = False) -> Array:
    """0 as an array without dimensions, of the kind, device and dtype of ``reference`` (``whole``: int64).

    The same one for every caller, so that engines can tell that many clients start alike. Not to be changed.
    """
    key = (is_torch(reference), reference.dtype, getattr(reference, "device", None), whole)
    if key not in _zeros:
        _zeros[key] = like(np.asarray(0, np.int64), reference) if whole else scalar(0, reference)
    return _zeros[key]


def widen(x: Array) -> Array:
    """Half-precision numbers as float32, in which their sums keep their digits; all else as it is."""
    if x.dtype.itemsize >= 4 or not is_float(x):
        return x
    return x.float() if is_torch(x) else x.astype(np.float32)


def zeros_like(x: Array) -> Array:
    """Zeros of the shape, dtype, kind and device of ``x``."""
    return sys.modules["torch"].zeros_like(x) if is_torch(x) else np.zeros_like(x)


def empty(count: int, reference: Array) -> Array:
    """Room for so many elements, [count], of the kind, dtype and device of ``reference``."""
    if is_torch(reference):
        return sys.modules["torch"].empty(count, dtype=reference.dtype, device=reference.device)
    return np.empty(count, reference.dtype)


def added_in_place(x: Array, y: Array) -> Array:
    """x + y, in the memory of ``x``; both have one shape and dtype. Where ``y`` lies in a file, it stays there."""
    if x.nbytes <= backed.PIECE or not (_contiguous(x) and _contiguous(y)):
        x += y
        return x
    own, other, step = x.reshape(-1), y.reshape(-1), backed.PIECE // x.dtype.itemsize
    for at in range(0, own.shape[0], step):
        own[at : at + step] += other[at : at + step]
        backed.let_go(other[at : at + step])
    return x


def _contiguous(x: Array) -> bool:
    return bool(x.is_contiguous() if is_torch(x) else x.flags.c_contiguous)


def sqrt(x: Array) -> Array:
    """The square root, element by element."""
    return x.sqrt() if is_torch(x) else np.sqrt(x)


def where(condition: Array, x: Array, y: Array) -> Array:
    """``x`` where the condition holds, else ``y``."""
    return sys.modules["torch"].where(condition, x, y) if is_torch(x) else np.where(condition, x, y)


def maximum(x: Array, y: Array) -> Array:
    """The larger one, element by element."""
    return sys.modules["torch"].maximum(x, y) if is_torch(x) else np.maximum(x, y)


def sign(x: Array) -> Array:
    """-1, 0 or 1, element by element."""
    return x.sign() if is_torch(x) else np.sign(x)


def all_finite(x: Array) -> bool:
    """Whether no element is NaN or infinite; integers always are finite."""
    if not is_torch(x):
        return bool(np.isfinite(x).all()) if np.issubdtype(x.dtype, np.floating) else True
    if not x.is_floating_point():
        return True
    # NaN and infinity survive in a sum, which is taken ten times faster than a look at each element; the sum of finite
    # numbers may overflow, so one that is not finite decides nothing. A short list (a bias) is summed faster in Python.
    total = sum(x.tolist()) if x.dim() == 1 and len(x) <= SHORT else x.sum().item()
    return isfinite(total) or bool(x.isfinite().all())


def copy(x: Array) -> Array:
    """A copy that shares no memory with ``x``."""
    return x.detach().clone() if is_torch(x) else np.array(x)


def nbytes(x: Array) -> int:
    """The size of the elements in bytes."""
    return int(x.nbytes)


def to_torch(x: np.ndarray) -> Array:
    """A NumPy array as a torch tensor, sharing its memory where that can be written to."""
    torch = sys.modules.get("torch")
    if torch is None:
        if find_spec("torch") is not None:
            raise WireError("these bytes hold torch tensors, and torch is not imported yet: import torch first")
        raise MissingExtra("torch", "torch", "reading a torch tensor")
    return torch.from_numpy(x if x.flags.writeable else x.copy())
