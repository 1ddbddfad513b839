"""Evaluation of a module: in pieces that stay in the cache, without copies of the data, many clients at once.

Legend: n examples, m functions (the loss, then the metrics), c clients.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from insitu.core import arrays, tree
from insitu.core.types import Data
from insitu.learners.torch.losses import Loss

PIECE = {"cpu": 1024}
"""Examples in one forward pass: more of them fall out of a CPU's cache, and hold the activations of them all."""
LARGE_PIECE = 4096
"""The same on other devices."""
KEEP = 2**28
"""Bytes of a data set up to which all of it is made into tensors at once, and kept for the next evaluation."""

Columns = dict[str, Any]
"""``{"x": tensor [n, …] or a dict of such, "y": tensor [n, …]}``; without ``y`` for prediction."""
Convert = Callable[[Data, Any], Columns]
"""The tensors of these examples of this data."""


class Evaluator:
    """Runs one module in evaluation mode.

    The module sees slices of the caller's own arrays. Whether it writes into them is found out on the first piece, a
    copy; a module that does gets copies for good.
    """

    def __init__(self, module: nn.Module, functions: Mapping[str, Loss]) -> None:
        self.module, self.functions = module, dict(functions)
        self._writes: bool | None = None
        self._mixes: bool | None = None
        self._kept: tuple[Any, torch.device, Columns] | None = None

    def sums(self, state: Mapping[str, Tensor], data: Data, convert: Convert) -> dict[str, float]:
        """``{"examples": n, "loss": Σ loss, …}`` over all examples, summed in float64."""

        def taken(output: Any, y: Tensor) -> Tensor:
            return torch.stack([f(output, y).sum(dtype=torch.float64) for f in self.functions.values()])

        found = self._run(state, self._pieces(state, data, convert), taken)
        totals = torch.stack(found).sum(0).tolist() if found else [0.0] * len(self.functions)
        return {"examples": float(len(data)), **dict(zip(self.functions, totals, strict=True))}

    def outputs(self, state: Mapping[str, Tensor], data: Data, convert: Convert) -> list[np.ndarray]:
        """The module's outputs [n, …], piece by piece."""
        return self._run(state, self._pieces(state, data, convert), lambda output, y: arrays.asnumpy(output))

    def sums_of_many(
        self, state: Mapping[str, Tensor], parts: Sequence[Data], convert: Convert
    ) -> list[dict[str, float]]:
        """:meth:`sums` of each part [c], several parts in one forward pass.

        What an example gives does not depend on its neighbours in evaluation mode. A module for which that is not so
        (batch norm without running statistics) is found out on the first parts, and gets them one by one.
        """
        if self._mixes:
            return [self.sums(state, part, convert) for part in parts]
        found: list[dict[str, float]] = [{} for _ in parts]
        for places in _groups(parts, self._piece(state)):
            told = self._sums_of(state, [parts[place] for place in places], convert)
            if self._mixes is None and len(places) > 1:
                alone = self.sums(state, parts[places[0]], convert)
                self._mixes = not _close(told[0], alone)
                if self._mixes:
                    return self.sums_of_many(state, parts, convert)
            for place, sums in zip(places, told, strict=True):
                found[place] = sums
        return found

    def _sums_of(self, state: Mapping[str, Tensor], parts: Sequence[Data], convert: Convert) -> list[dict[str, float]]:
        def taken(output: Any, y: Tensor) -> Tensor:
            return torch.stack([f(output, y).double() for f in self.functions.values()], dim=1)

        lengths = [len(part) for part in parts]
        if len(parts) == 1 or not sum(lengths):
            return [self.sums(state, part, convert) for part in parts]
        # Joining copies, so that the module may write into it.
        columns = _on(convert(_joined(parts), slice(None)), _device(state))
        step = self._piece(state)
        pieces = (_cut(columns, slice(at, at + step)) for at in range(0, sum(lengths), step))
        each_nm = torch.cat(self._run(state, pieces, taken)).cpu().numpy()
        starts, full = np.cumsum([0, *lengths[:-1]]), np.flatnonzero(lengths)
        sums_cm = np.zeros((len(parts), len(self.functions)))
        sums_cm[full] = np.add.reduceat(each_nm, starts[full])  # which has no sum of nothing: a part may be empty
        return [
            {"examples": float(n), **dict(zip(self.functions, sums, strict=True))}
            for n, sums in zip(lengths, sums_cm.tolist(), strict=True)
        ]

    def _piece(self, state: Mapping[str, Tensor]) -> int:
        return PIECE.get(_device(state).type, LARGE_PIECE)

    def _run(self, state: Mapping[str, Tensor], pieces: Iterable[Columns], taken: Callable[[Any, Any], Any]) -> Any:
        """``taken(output, y)`` of each piece. The state is put into the module once and not for each piece."""
        if self.module.training:
            self.module.train(False)
        named = {f"module.{name}": tensor for name, tensor in state.items()}
        with torch.no_grad():
            return functional_call(_Whole(self.module), named, (pieces, taken))

    def _pieces(self, state: Mapping[str, Tensor], data: Data, convert: Convert) -> Iterator[Columns]:
        device, step = _device(state), self._piece(state)
        whole = self._whole(data, convert, device, step)
        for start in range(0, len(data), step):
            where = slice(start, start + step)
            piece = _on(convert(data, where), device) if whole is None else _cut(whole, where)
            if self._writes is False:
                yield piece
                continue
            yield {**piece, "x": (given := tree.copy(piece["x"]))}
            if self._writes is None:
                self._writes = not all(map(torch.equal, tree.values(given), tree.values(piece["x"])))

    def _whole(self, data: Data, convert: Convert, device: torch.device, step: int) -> Columns | None:
        """All of the data as tensors, unless it is large; that of the last evaluation again where it is the same."""
        if self._kept is not None and self._kept[0]() is data and self._kept[1] == device:
            return self._kept[2]
        if sum(column.nbytes for column in tree.values({"x": data.x, "y": data.y}) if column is not None) > KEEP:
            return None
        columns = _on(convert(data, slice(None)), device)
        if len(data) > step:  # clients' held-out parts are small, and must not take the test set's place
            self._kept = (weakref.ref(data, self._forget), device, columns)
        return columns

    def _forget(self, _: Any) -> None:
        self._kept = None


class _Whole(nn.Module):
    """All pieces of an evaluation in one call of ``functional_call``, which costs as much as a small piece."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pieces: Iterable[Columns], taken: Callable[[Any, Any], Any]) -> list[Any]:
        """One result a piece."""
        return [taken(self.module(piece["x"]), piece.get("y")) for piece in pieces]


def _device(state: Mapping[str, Tensor]) -> torch.device:
    return next(iter(state.values())).device


def _on(columns: Columns, device: torch.device) -> Columns:
    return columns if device.type == "cpu" else tree.map(lambda column: column.to(device), columns)


def _cut(columns: Columns, where: slice) -> Columns:
    return tree.map(lambda column: column[where], columns)


def _groups(parts: Sequence[Data], step: int) -> Iterator[list[int]]:
    """Places of parts whose columns have the same form, together ``step`` examples or a little more."""
    open_: dict[Any, list[int]] = {}
    sizes: dict[Any, int] = {}
    for place, part in enumerate(parts):
        form = _form(part)
        open_.setdefault(form, []).append(place)
        sizes[form] = sizes.get(form, 0) + len(part)
        if sizes[form] >= step:
            yield open_.pop(form)
            del sizes[form]
    yield from open_.values()


def _form(part: Data) -> Any:
    return tuple(
        (path, column.dtype, tuple(column.shape[1:]))
        for path, column in tree.leaves({"x": part.x, "y": part.y})
        if column is not None
    )


def _joined(parts: Sequence[Data]) -> Data:
    x = tree.map(lambda *columns: np.concatenate([np.asarray(column) for column in columns]), *(p.x for p in parts))
    y = None if parts[0].y is None else np.concatenate([np.asarray(part.y) for part in parts])
    return Data(x, y)


ROUNDING = 5e-5
"""How far sums of losses may be apart, relatively, by rounding: more is one example's influence on another."""


def _close(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    """Equal but for rounding, by the loss: it is continuous, where one tie decided otherwise turns an accuracy."""
    a, b = first["loss"], second["loss"]
    return bool(np.isclose(a, b, rtol=ROUNDING, atol=1e-6 * first["examples"], equal_nan=True))
