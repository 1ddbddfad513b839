"""Whether an update may be counted: looked at from end to end, piece by piece, before it is acknowledged.

Reading costs the memory of one piece, whatever the update's size; only where stages have packed it is it unpacked as a
whole, since nobody can tell otherwise what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from insitu.core import arrays, bits, tree, wire
from insitu.core.errors import InsituError, Refusal, WireError
from insitu.core.types import Context, Update
from insitu.engines.https.calls.values import Message
from insitu.engines.https.wire.manifest import Manifest
from insitu.engines.https.wire.packing import Fill, Stream, gathered
from insitu.rounds.plan import Plan

PIECE = 2**18
"""Bytes that are looked at together: they stay in the processor's cache, and are whole numbers of every dtype."""
PARTS = ("shared", "buffers")
"""The parts of an update that must be as those of the message."""

_Table = dict[tuple[str | int, ...], tuple[str, tuple[int, ...], str]]


def check_weight(manifest: Manifest, examples: int | None) -> None:
    """Raises Refusal BAD_WEIGHT where a weight is not above 0, or above the examples that the site has declared."""
    most = max(1, examples or 1)
    for part, weight in (manifest.weight or {}).items():
        if not 0 < weight <= most:
            raise Refusal(
                "BAD_WEIGHT", f"weight {weight:g} of {part} is not above 0 and at most {most}, the declared examples"
            )


def check_update(
    plan: Plan, kind: str, manifest: Manifest, message: Message, fill: Fill, asked: int, context: Context
) -> None:
    """Raises Refusal BAD_UPDATE, naming tensor and index, or BAD_MANIFEST, where this must not be counted.

    asked    clients in the cohort: so many such values, weighted, must not overflow when they are added
    context  of the round and client, for stages
    """
    weight = manifest.weight or {}
    if kind == "evaluate":
        if manifest.tensors or weight:
            raise _bad("it answers an evaluation, and should hold metrics only")
        _outline(manifest, fill, lambda entry, numbers, first: None)
        return
    staged = kind == "train" and bool(plan.stages)

    def looks(entry: Mapping[str, Any], numbers: np.ndarray, first: int) -> None:
        factor = 1.0 if staged else weight.get(str(entry["path"][0]), 1.0) if entry["path"] else 1.0
        _check_numbers(entry, numbers, first, factor * asked)

    value = _outline(manifest, fill, looks)
    _check_parts(value, weight)
    if not staged:
        told = {tuple(e["path"]): (e["dtype"], tuple(e["shape"]), _kind(e["kind"])) for e in manifest.tensors}
        _check_leaves(value)
        if kind == "train":
            _check_schema(plan, told, message)
        return
    decoded = _decoded(plan, manifest, fill, context)
    if any(stage.decodes == "sum" for stage in plan.stages):
        return  # the sum of all is what the server can undo: what a single one says stays hidden
    _check_parts(decoded, weight)
    _check_leaves(decoded)
    _check_schema(plan, dict(_table(decoded)), message)
    for part, below in decoded.items():
        for path, x in tree.leaves(below, part):
            _check_array(path, x, weight[part] * asked)


def _outline(manifest: Manifest, fill: Fill, looks: Callable[[Mapping[str, Any], np.ndarray, int], None]) -> Any:
    """The update's tree with the right shapes and dtypes and no memory behind them; ``looks`` sees all numbers."""
    stream, first = Stream(manifest.chunks, fill), 0
    entries = iter(manifest.tensors)
    head = 2  # the frame's first bytes and its header
    room = memoryview(bytearray(PIECE))

    def take(count: int) -> Any:
        nonlocal head, first
        own, first = first, first + count
        if head:
            head -= 1
            return stream.read(own, count)
        entry = next(entries, None)
        if entry is None or entry["nbytes"] != count:
            raise WireError("the table of tensors is not the manifest's")
        dtype = bits.dtype(entry["dtype"], entry["kind"])
        assert dtype is not None
        at = 0
        while at < count:
            piece = room[: min(PIECE, count - at)]
            stream.fill(own + at, piece)
            looks(entry, np.frombuffer(piece, dtype), at // dtype.itemsize)
            at += len(piece)
        return np.zeros(count, np.uint8)  # pages that nobody touches take no memory

    try:
        found, table = wire.decode_stream(take, manifest.length)
    except (WireError, StopIteration) as error:
        raise Refusal("BAD_MANIFEST", f"the chunks hold no tree: {error}") from error
    if table != [dict(entry) for entry in manifest.tensors]:
        raise Refusal("BAD_MANIFEST", "the table of tensors in the manifest is not that of the chunks")
    return found


def _check_parts(value: Any, weight: Mapping[str, float]) -> None:
    if not isinstance(value, dict):
        raise _bad(f"it is a {type(value).__name__}, and should be a dict of parts")
    if value.keys() != weight.keys():
        raise _bad(f"it has the parts {tree.describe(value)} and weights for {tree.describe(dict(weight))}")
    for part, below in value.items():
        if not isinstance(below, dict):
            raise _bad(f"its part {part} is a {type(below).__name__}, and should be a dict of arrays")


def _check_leaves(value: Any) -> None:
    for path, leaf in tree.leaves(value):
        if not arrays.is_array(leaf):
            raise _bad(f"{path} is a {type(leaf).__name__}, and should be an array")


def _check_schema(plan: Plan, told: _Table, message: Message) -> None:
    """Names, shapes and dtypes of what the model says, and the kind of arrays of the rest."""
    asked: _Table = {tuple(e["path"]): (e["dtype"], tuple(e["shape"]), _kind(e["kind"])) for e in message.tensors}
    kinds = {kind for _, _, kind in asked.values()} or {"numpy"}
    for path, (_, _, kind) in told.items():
        if kind not in kinds:
            raise _bad(f"{_name(path)} is a {kind} array, and should be of {' or '.join(sorted(kinds))}")
    for part in PARTS:
        due = {path: entry for path, entry in asked.items() if path[:1] == (part,)}
        own = {path: entry for path, entry in told.items() if path[:1] == (part,)}
        if not due or (not own and (part != "shared" or plan.algorithm.tells_parts)):
            continue
        _compare(part, due, own)


def _compare(part: str, due: _Table, own: _Table) -> None:
    for path in due.keys() - own.keys():
        raise _bad(f"{_name(path)} is missing from {part}")
    for path in own.keys() - due.keys():
        raise _bad(f"{_name(path)} is not in the model's {part}")
    for path, (dtype, shape, _) in own.items():
        wanted, right, _ = due[path]
        if shape != right:
            raise _bad(f"{_name(path)} has the shape {list(shape)}, not {list(right)}")
        if dtype != wanted:
            raise _bad(f"{_name(path)} has the dtype {dtype}, not {wanted}")


def _check_numbers(entry: Mapping[str, Any], numbers: np.ndarray, first: int, factor: float) -> None:
    """Raises Refusal where a number is not finite, or so large that ``factor`` of them would overflow."""
    floats = _as_floats(entry["dtype"], numbers)
    if floats is None or not floats.size:
        return
    limit = float(np.finfo(floats.dtype).max) / (2 * max(1.0, factor))
    with np.errstate(invalid="ignore"):
        high, low = float(floats.max()), float(floats.min())
    if -limit <= low and high <= limit:
        return
    wrong = ~(np.isfinite(floats) & (np.abs(floats) <= limit))
    at = int(np.flatnonzero(wrong)[0])
    where = f"{_name(tuple(entry['path']))}[{first + at * len(numbers) // len(floats)}]"
    if not math.isfinite(floats[at]):
        raise _bad(f"{where} is {floats[at]}: not a finite number")
    raise _bad(f"{where} is {floats[at]:g}, too large to be added up over the cohort (at most {limit:.3g})")


def _as_floats(dtype: str, numbers: np.ndarray) -> np.ndarray | None:
    """As numbers of the dtype in which they are added; None for whole numbers and text."""
    if dtype == "bfloat16":
        return (numbers.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "float16":
        return numbers.astype(np.float32)
    if dtype.startswith("complex"):
        return numbers.view(f"<f{numbers.dtype.itemsize // 2}")
    return numbers if dtype.startswith("float") else None


def _check_array(path: str, x: Any, factor: float) -> None:
    plain = np.atleast_1d(arrays.asnumpy(x)).reshape(-1)
    entry = {"path": path.split("/"), "dtype": plain.dtype.name}
    for at in range(0, len(plain), PIECE):
        _check_numbers(entry, plain[at : at + PIECE], at, factor)


def _decoded(plan: Plan, manifest: Manifest, fill: Fill, context: Context) -> dict[str, Any]:
    """The update as the server's halves of the stages make it; what they cannot read is the sender's fault."""
    update = Update(gathered(manifest.plain(), fill), dict(manifest.weight or {}), dict(manifest.metrics or {}))
    try:
        for stage in reversed(plan.stages):
            if stage.decodes == "each":
                update = stage.decode_each(update, context)
    except (InsituError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _bad(f"the plan's stages cannot unpack it: {type(error).__name__}: {str(error)[:200]}") from error
    return update.value


def _table(
    value: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[str, tuple[int, ...], str]]]:
    if tree.is_branch(value):
        for key, below in value.items():
            yield from _table(below, (*path, str(key)))
    else:
        kind = "torch" if arrays.is_torch(value) else "numpy"
        yield path, (str(value.dtype).removeprefix("torch."), tuple(int(n) for n in value.shape), kind)


def _kind(kind: str) -> str:
    return "torch" if kind == "torch" else "numpy"


def _name(path: tuple[Any, ...]) -> str:
    text = "/".join(map(str, path))
    return text if len(text) <= 200 else f"{text[:200]}…"


def _bad(why: str) -> Refusal:
    return Refusal("BAD_UPDATE", f"the update is refused: {why}")
