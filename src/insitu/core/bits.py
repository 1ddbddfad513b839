"""One array ⇄ its raw bytes: the dtypes that travel, and how. Used by :mod:`insitu.core.wire` only.

A *kind* says what comes back: ``numpy`` an array, ``scalar`` a NumPy scalar, ``torch`` a tensor on the CPU.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np

from insitu.core import arrays
from insitu.core.errors import WireError

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_NUMBERS = {"bool", *_INTEGERS, "float16", "float32", "float64", "complex64", "complex128"}
_TEXT = re.compile(r"U[1-9][0-9]{0,6}")
_LAST_CHARACTER = 0x10FFFF


def kind(x: Any) -> str:
    """What the array ``x`` is to come back as."""
    return "torch" if arrays.is_torch(x) else "scalar" if isinstance(x, np.generic) else "numpy"


def dtype(name: Any, kind: Any) -> np.dtype[Any] | None:
    """The little-endian NumPy dtype in which a dtype called ``name`` travels; None where it does not.

    bfloat16, which NumPy lacks, goes as the 16-bit integers of its bits; text as UTF-32 of a fixed width.
    """
    if not isinstance(name, str) or kind not in ("numpy", "scalar", "torch"):
        return None
    if kind == "torch" and name == "bfloat16":
        return np.dtype("<i2")
    if name in _NUMBERS or (kind != "torch" and _TEXT.fullmatch(name)):
        return np.dtype(name).newbyteorder("<")
    return None


def raw(x: Any, where: str) -> tuple[str, Any]:
    """The dtype's name on the wire, and the elements as bytes [nbytes] in C order, copied only where needed.

    Raises WireError, naming ``where``, for an array that does not travel.
    """
    return _torch_raw(x, where) if arrays.is_torch(x) else _numpy_raw(x, where)


def _numpy_raw(x: Any, where: str) -> tuple[str, Any]:
    if not isinstance(x, np.generic) and type(x) not in (np.ndarray, np.memmap):
        raise WireError(f"{where} is a {type(x).__qualname__}, whose extras would be lost: use np.asarray")
    array, name = np.asarray(x), x.dtype.name
    if array.dtype.kind == "U":
        name = f"U{max(1, array.dtype.itemsize // 4)}"  # np.str_("") has width 0, which no array can have
    if dtype(name, "numpy") is None or array.dtype.kind not in "biufcU":
        raise WireError(
            f"{where} is an array of dtype {x.dtype}, which does not travel: "
            "convert it to numbers or to text of a fixed width (dtype 'U')"
        )
    little = np.dtype(name).newbyteorder("<")
    return name, np.ascontiguousarray(array, dtype=little).reshape(-1).view(np.uint8)


def _torch_raw(x: Any, where: str) -> tuple[str, Any]:
    torch = sys.modules["torch"]  # there is a tensor, so somebody has imported it
    name = str(x.dtype).removeprefix("torch.")
    if x.layout != torch.strided or dtype(name, "torch") is None:
        raise WireError(
            f"{where} is a torch tensor of dtype {name} and layout {x.layout}, which does not travel: "
            "make it dense and of a plain dtype"
        )
    try:
        plain = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
        array = (plain.view(torch.int16) if name == "bfloat16" else plain).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # meta tensors, tensors inside vmap
        raise WireError(f"{where} is a torch tensor whose numbers cannot be read: {error}") from error
    return name, _numpy_raw(array, where)[1]


def array(data: memoryview, name: str, kind: str, shape: tuple[int, ...], where: str, *, ours: bool = False) -> Any:
    """The array whose elements are ``data``: writable, in native byte order, sharing no memory with it.

    ``ours``: the bytes are given to the array for good, so that it may lie in them.
    ``dtype(name, kind)`` is not None and ``data`` has as many bytes as dtype and shape say.
    Raises WireError for bytes that no array can hold, MissingExtra where a tensor needs torch and it is not there.
    """
    little = dtype(name, kind)
    assert little is not None
    flat = np.frombuffer(data, little) if data else np.empty(0, little)
    if little.kind == "b" and flat.size and flat.view(np.uint8).max() > 1:
        raise WireError(f"{where} is of dtype bool and has elements that are neither 0 nor 1: refuse its sender")
    if little.kind == "U" and flat.size and flat.view("<u4").max() > _LAST_CHARACTER:
        raise WireError(f"{where} is text with characters that do not exist: refuse its sender")
    result = flat.astype(little.newbyteorder("="), copy=not ours).reshape(shape)
    if kind != "torch":
        return result[()] if kind == "scalar" else result
    tensor = arrays.to_torch(result)
    return tensor.view(sys.modules["torch"].bfloat16) if name == "bfloat16" else tensor
