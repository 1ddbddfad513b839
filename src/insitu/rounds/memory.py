"""What clients keep between rounds: pending until the round commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from insitu.core.tree import Tree


class Memories(Mapping[str, Any]):
    """Client id → memory as of the last committed round. Engines read it; the round's loop writes it."""

    def __init__(self, current: Mapping[str, Tree | None] | None = None) -> None:
        self._current: dict[str, Any] = dict(current or {})
        self._pending: dict[str, Any] = {}
        self._changed: set[str] = set()

    def __getitem__(self, client: str) -> Any:
        return self._current[client]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def pend(self, client: str, memory: Tree | None) -> None:
        """Takes a client's new memory, to be current when the round commits."""
        if memory is not None:
            self._pending[client] = memory

    def commit(self) -> None:
        """The round counts: pending memories become current."""
        self._current.update(self._pending)
        self._changed.update(self._pending)
        self._pending = {}

    def discard(self) -> None:
        """The round is void: pending memories are forgotten."""
        self._pending = {}

    def changed(self) -> dict[str, Any]:
        """Memories changed since the last call: what a checkpoint has to write."""
        changed = {client: self._current[client] for client in sorted(self._changed)}
        self._changed = set()
        return changed
