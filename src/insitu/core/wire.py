"""Tree ⇄ bytes: a versioned frame with a JSON header, raw numbers and a SHA-256. Never pickle.

::

    8 bytes   magic
    4 bytes   format version, little-endian
    8 bytes   length of the header, little-endian
    header    JSON: {"tree": structure, "tensors": [{path, dtype, shape, offset, nbytes, kind}, …]}
    payload   the tensors' elements one after another, little-endian, C order, without gaps
    32 bytes  SHA-256 of everything before it

A tree here is a dict with text keys (any characters; their order is kept), a list, a tuple, or one of these
leaves: None, bool, int of any size, float (bit for bit), str, a NumPy array or scalar, a torch tensor. In the
structure a container or tensor is an object whose one key says which it is, so that no key of a user's can be
mistaken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from insitu.core import arrays, backed, bits
from insitu.core.errors import WireError
from insitu.core.payloads import Coming, Elsewhere, Held, Payload

VERSION = 1
MAX_HEADER = 64 * 2**20
"""The largest header in bytes, written or read: room for half a million tensors."""
MAX_DEPTH = 64
"""How many keys and indices a path may have."""

_MAGIC = b"\x8cinsitu\n"
_PREAMBLE = struct.Struct("<8sIQ")
_DIGEST = 32
_MAX_DIMENSIONS = 32  # what every NumPy that we support can hold
_Path = tuple[str | int, ...]


def encode(tree: Any) -> bytes:
    """The tree as bytes; the same tree, keys in the same order, always gives the same bytes.

    Tensors are read from wherever they are (a GPU, a graph that tracks gradients); only their numbers travel.
    Peak memory is the result plus one copy of whatever is not contiguous or not on the CPU.
    Raises WireError, naming the path and the type, for anything that is not part of a tree.
    """
    return b"".join(signed(frame(tree)[0]))


def signed(buffers: Iterable[Any]) -> Iterator[Any]:
    """The buffers of a :func:`frame`, and the SHA-256 of them at the end."""
    check = hashlib.sha256()
    for buffer in buffers:
        check.update(buffer)
        yield buffer
    yield check.digest()


def cut(buffers: Iterable[Any], size: int) -> Iterator[bytes]:
    """The buffers as one stream, in pieces of ``size`` bytes, the last one as long as is left."""
    piece = bytearray()
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        at = 0
        while at < len(view):
            some = view[at : at + size - len(piece)]
            piece += some
            backed.let_go(some)
            at += len(some)
            if len(piece) == size:
                yield bytes(piece)
                piece = bytearray()
    if piece:
        yield bytes(piece)


def frame(tree: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """What :func:`encode` joins, without the SHA-256: the buffers one after another, and the table of tensors.

    The payload's buffers are views of the arrays where these lie as they travel: nothing is copied, and the arrays
    must not be changed meanwhile. Raises WireError as :func:`encode`.
    """
    writer = _Writer(canonical=False)
    header = writer.header(tree)
    return [_PREAMBLE.pack(_MAGIC, VERSION, len(header)), header, *writer.payload], writer.table


def digest(tree: Any) -> str:
    """The SHA-256 of a tree's content, 64 hexadecimal digits.

    It is canonical: keys are sorted at every level, so the order of a dict does not count; nor does whether
    numbers lie in NumPy or torch, on which device, in which byte order, or in a scalar instead of an array
    without dimensions. Keys, dtypes, shapes and bits count (0.0 is not -0.0), and so does list against tuple.
    Raises WireError as :func:`encode`.
    """
    writer = _Writer(canonical=True)
    check = hashlib.sha256(b"insitu tree 1\n")
    check.update(writer.header(tree))
    for part in writer.payload:
        for at in range(0, len(part), backed.PIECE):
            check.update(part[at : at + backed.PIECE])
            backed.let_go(part[at : at + backed.PIECE])
    return check.hexdigest()


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The tree that :func:`encode` wrote: NumPy arrays as such, tensors as torch tensors on the CPU.

    Arrays are writable and share no memory with ``data``. Nothing is allocated before it is known to be in
    ``data``: memory is the payload once more, plus a small multiple of the header.
    Raises WireError for bytes that are not a tree of ours or were damaged, MissingExtra where a tensor needs
    torch and it was not imported.
    """
    view = memoryview(data).cast("B")
    header, payload = _unframe(view)
    return _rebuilt(header, Held(payload))


def decode_stream(
    take: Callable[[int], Any], length: int, leaf: Callable[[Mapping[str, Any], int], Any] | None = None
) -> tuple[Any, list[dict[str, Any]]]:
    """The tree of a :func:`frame` of ``length`` bytes, and its table of tensors, without holding the bytes as well.

    ``take(n)`` gives the next n bytes, which become the arrays' own: memory is the tree. Whoever gives them has
    checked that they are those that were sent. With ``leaf`` nothing behind the header is taken: it is given each
    tensor's entry in the table and the byte at which its elements begin, and makes what stands for it in the tree.
    Raises WireError as :func:`decode`.
    """
    if length < _PREAMBLE.size:
        raise _damaged(f"{length} bytes are fewer than an empty tree has")
    magic, version, size = _PREAMBLE.unpack(take(_PREAMBLE.size))
    if magic != _MAGIC:
        raise WireError(f"these bytes start with {magic!r}, so they are no tree: give what encode() wrote")
    if version != VERSION or size > min(MAX_HEADER, length - _PREAMBLE.size):
        raise _damaged(f"format {version} with a header of {size} bytes in {length}")
    header = _header(bytes(take(size)))
    first = _PREAMBLE.size + size
    payload = Coming(take, length - first) if leaf is None else Elsewhere(leaf, first, length - first)
    return _rebuilt(header, payload), header["tensors"]


def _rebuilt(header: dict[str, Any], payload: Payload) -> Any:
    reader = _Reader(header["tensors"], payload)
    tree = reader.node(header["tree"], ())
    reader.finish()
    return tree


def _where(path: _Path) -> str:
    """The path for a message: short and printable whatever a sender wrote into it."""
    text = "/".join(map(str, path)) or "the root"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _damaged(what: str) -> WireError:
    return WireError(f"the bytes are damaged or forged: {what}; send or restore them again")


class _Writer:
    """Walks a tree once, collecting its structure, its table of tensors and its payload."""

    def __init__(self, canonical: bool) -> None:
        self.canonical = canonical
        self.table: list[dict[str, Any]] = []
        self.payload: list[Any] = []
        self.offset = 0

    def header(self, tree: Any) -> bytes:
        structure = self.node(tree, ())
        parts = {"tree": structure, "tensors": self.table}
        text = json.dumps(parts, separators=(",", ":"), allow_nan=False).encode()
        if len(text) > MAX_HEADER:
            raise WireError(
                f"the tree's header takes {len(text)} bytes of at most {MAX_HEADER}: "
                "put its numbers into fewer, larger arrays"
            )
        return text

    def node(self, x: Any, path: _Path) -> Any:
        if len(path) > MAX_DEPTH:
            raise WireError(f"{_where(path[:4])}/… is nested deeper than {MAX_DEPTH} levels: flatten it")
        if x is None or type(x) in (bool, str):
            return x
        if type(x) is int:  # JSON readers, ours too, refuse numbers of thousands of digits
            return x if -(2**63) <= x < 2**63 else {"int": hex(x)}
        if type(x) is float:
            return x if math.isfinite(x) else {"float": struct.pack(">d", x).hex()}
        if type(x) in (list, tuple):
            return {type(x).__name__: [self.node(value, (*path, i)) for i, value in enumerate(x)]}
        if isinstance(x, Mapping):
            return {"dict": self.mapping(x, path)}
        if arrays.is_array(x):
            return {"tensor": self.tensor(x, path)}
        raise WireError(
            f"{_where(path)} is a {type(x).__module__}.{type(x).__qualname__}, which does not travel: "
            "make it an array, a number, text, a dict, a list or a tuple"
        )

    def mapping(self, x: Mapping[Any, Any], path: _Path) -> dict[str, Any]:
        for key in x:
            if type(key) is not str:
                raise WireError(f"{_where(path)} has the key {key!r}, a {type(key).__name__}: use text keys")
        keys = sorted(x) if self.canonical else list(x)
        return {key: self.node(x[key], (*path, key)) for key in keys}

    def tensor(self, x: Any, path: _Path) -> int:
        where = _where(path)
        name, raw = bits.raw(x, where)
        if len(x.shape) > _MAX_DIMENSIONS:
            raise WireError(f"{where} has {len(x.shape)} dimensions of at most {_MAX_DIMENSIONS}: reshape it")
        entry = {
            "path": list(path),
            "dtype": name,
            "shape": [int(n) for n in x.shape],
            "offset": self.offset,
            "nbytes": raw.nbytes,
            "kind": "any" if self.canonical else bits.kind(x),
        }
        self.table.append(entry)
        self.payload.append(raw)
        self.offset += raw.nbytes
        return len(self.table) - 1


def _unframe(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    """The header and the payload, the frame and the digest checked."""
    start = bytes(view[: len(_MAGIC)])
    if start != _MAGIC:
        raise WireError(f"these bytes start with {start!r}, so they are no tree: give what encode() wrote")
    if len(view) < _PREAMBLE.size + _DIGEST:
        raise _damaged(f"{len(view)} bytes are fewer than an empty tree has")
    _, version, length = _PREAMBLE.unpack_from(view)
    if version > VERSION:
        raise WireError(f"wire format {version} is newer than {VERSION}: install a newer insitu to read it")
    if hashlib.sha256(view[:-_DIGEST]).digest() != view[-_DIGEST:]:
        raise _damaged(f"the digest does not fit the {len(view)} bytes")
    end = _PREAMBLE.size + length
    if version < 1 or length > MAX_HEADER or end > len(view) - _DIGEST:
        raise _damaged(f"format {version} with a header of {length} bytes in {len(view)}")
    return _header(bytes(view[_PREAMBLE.size : end])), view[end:-_DIGEST]


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError as error:
        raise _damaged("the header is nested too deeply") from error
    except ValueError as error:
        raise _damaged(f"the header is not JSON of ours: {error}") from error
    if not isinstance(header, dict) or header.keys() != {"tree", "tensors"}:
        raise _damaged("the header lacks its tree or its tensors")
    if not isinstance(header["tensors"], list):
        raise _damaged("the header's tensors are not a list")
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _Reader:
    """Rebuilds a tree; tensors must come in the table's order and fill the payload without gap or overlap."""

    def __init__(self, table: list[Any], payload: Payload) -> None:
        self.table = table
        self.payload = payload
        self.used = 0

    def node(self, x: Any, path: _Path) -> Any:
        if len(path) > MAX_DEPTH:
            raise _damaged(f"nested deeper than {MAX_DEPTH} levels")
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        if isinstance(x, dict) and len(x) == 1:
            ((tag, content),) = x.items()
            if tag == "dict" and isinstance(content, dict):
                return {key: self.node(value, (*path, key)) for key, value in content.items()}
            if tag in ("list", "tuple") and isinstance(content, list):
                items = [self.node(value, (*path, i)) for i, value in enumerate(content)]
                return items if tag == "list" else tuple(items)
            if tag == "tensor":
                return self.tensor(content, path)
            if tag in ("int", "float") and isinstance(content, str):
                return _number(tag, content, path)
        raise _damaged(f"{_where(path)} has no structure of ours")

    def tensor(self, index: Any, path: _Path) -> Any:
        where = _where(path)
        if type(index) is not int or index != self.used or index >= len(self.table):
            raise _damaged(f"{where} is not tensor {self.used} of {len(self.table)}, which was due")
        entry = self.table[index]
        shape, nbytes = _shape(entry, path)
        at = self.payload.at
        if entry["offset"] != at or entry["nbytes"] != nbytes:
            raise _damaged(f"{where} is not the {nbytes} bytes at {at} that were due")
        if at + nbytes > self.payload.length:
            raise _damaged(f"{where} ends at byte {at + nbytes} of a payload of {self.payload.length}")
        self.used = index + 1
        return self.payload.array(entry, shape, where)

    def finish(self) -> None:
        if self.used != len(self.table) or self.payload.at != self.payload.length:
            raise _damaged(f"{self.payload.at} of {self.payload.length} bytes belong to a tensor of the tree")


def _number(tag: str, text: str, path: _Path) -> int | float:
    try:
        return int(text, 16) if tag == "int" else float(struct.unpack(">d", bytes.fromhex(text))[0])
    except (ValueError, struct.error) as error:
        raise _damaged(f"{_where(path)} is {text[:40]!r}, which is no {tag}") from error


def _shape(entry: Any, path: _Path) -> tuple[tuple[int, ...], int]:
    """The shape and the size in bytes that a tensor's entry in the table claims; its place is not checked."""
    where = _where(path)
    if not isinstance(entry, dict) or entry.keys() != {"path", "dtype", "shape", "offset", "nbytes", "kind"}:
        raise _damaged(f"{where} has no entry of ours in the table of tensors")
    if entry["path"] != list(path):
        raise _damaged(f"{where} is called {str(entry['path'])[:80]} in the table of tensors")
    dtype, shape = bits.dtype(entry["dtype"], entry["kind"]), entry["shape"]
    if dtype is None:
        raise _damaged(f"{where} has dtype {str(entry['dtype'])[:80]!r}, which is not one that travels")
    sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or len(shape) > _MAX_DIMENSIONS or (entry["kind"] == "scalar" and shape):
        raise _damaged(f"{where} has shape {str(shape)[:80]}")
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise _damaged(f"{where} has shape {str(shape)[:80]}, more than a machine can address")
    return tuple(shape), math.prod(shape) * dtype.itemsize
