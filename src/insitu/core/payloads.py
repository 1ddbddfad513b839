"""Where the numbers of a frame are while its tree is rebuilt: see :mod:`insitu.core.wire`.

``array`` gives the next tensor, by its entry in the table, shape and name; ``at`` is the byte of the payload reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from insitu.core import bits


class Held:
    """A payload that is in memory, and stays its owner's."""

    def __init__(self, view: memoryview) -> None:
        self._view, self.length, self.at = view, len(view), 0

    def array(self, entry: Mapping[str, Any], shape: tuple[int, ...], where: str) -> Any:
        self.at += entry["nbytes"]
        raw = self._view[self.at - entry["nbytes"] : self.at]
        return bits.array(raw, entry["dtype"], entry["kind"], shape, where)


class Coming:
    """A payload that comes piece by piece, each the reader's own."""

    def __init__(self, take: Callable[[int], Any], length: int) -> None:
        self._take, self.length, self.at = take, length, 0

    def array(self, entry: Mapping[str, Any], shape: tuple[int, ...], where: str) -> Any:
        self.at += entry["nbytes"]
        raw = memoryview(self._take(entry["nbytes"]))
        return bits.array(raw, entry["dtype"], entry["kind"], shape, where, ours=True)


class Elsewhere:
    """A payload that stays where it is."""

    def __init__(self, leaf: Callable[[Mapping[str, Any], int], Any], first: int, length: int) -> None:
        self._leaf, self._first, self.length, self.at = leaf, first, length, 0

    def array(self, entry: Mapping[str, Any], shape: tuple[int, ...], where: str) -> Any:
        self.at += entry["nbytes"]
        return self._leaf(entry, self._first + self.at - entry["nbytes"])


Payload = Held | Coming | Elsewhere
