"""What clients keep between rounds: pending until the round commits; in memory up to a budget, on disk beyond it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from insitu.core import tree, wire
from insitu.core.errors import WireError
from insitu.core.limits import allowed_memory
from insitu.core.tree import Tree
from insitu.rounds.spill import Place, Spill

SHARE = 0.25
"""The share of the machine's memory that client memories may take where the user says nothing."""
OVERHEAD = 1024
"""Bytes that a memory takes beside its arrays, roughly: dicts, keys and the arrays' own heads."""


class Kept:
    """One client's memory as of one round. Its content never changes; where it lies does.

    A reader without the lock of :class:`Memories` (a store that writes behind) sees it here or there, never neither:
    it is in the file before it leaves memory.
    """

    __slots__ = ("_file", "_place", "_tree", "size")

    def __init__(self, memory: Tree | None) -> None:
        self._tree = memory
        self._file: Spill | None = None
        self._place: Place | None = None
        self.size = OVERHEAD + sum(getattr(leaf, "nbytes", 0) for _, leaf in tree.leaves(memory))

    def read(self) -> tuple[Tree | None, bool]:
        """The memory, and whether it had to be read from disk."""
        memory = self._tree
        if memory is not None or self._file is None or self._place is None:
            return memory, False
        return wire.decode(self._file.read(self._place)), True

    def hold(self, memory: Tree | None) -> None:
        """Keeps in memory what was read."""
        self._tree = memory

    def spill(self, file: Spill) -> None:
        """Leaves memory for the file; written once, however often it comes and goes. Raises WireError, StoreError."""
        if self._place is None:
            self._file, self._place = file, file.write(wire.encode(self._tree))
        self._tree = None

    def __del__(self) -> None:
        if self._file is not None and self._place is not None:
            self._file.release(self._place)


class Memories(Mapping[str, Any]):
    """Client id → memory as of the last committed round. Engines read it; the round's loop writes it.

    ``budget`` is in bytes: the memories used least recently, pending ones included, are on disk beyond it, and are read
    again when they are asked for. None: all are held. What a store has still to write comes on top, about as much.
    """

    def __init__(self, current: Mapping[str, Tree | None] | None = None, budget: int | None = None) -> None:
        self.budget = budget
        self.held = 0
        """Bytes of memories that are not on disk."""
        self.commits = 0
        """How often ``commit`` was called, and with what the last time."""
        self.counted: Collection[int] | None = None
        self._file: Spill | None = None
        self._recent: OrderedDict[Kept, str] = OrderedDict()
        self._pending: dict[str, tuple[int, Kept]] = {}
        self._changed: set[str] = set()
        self._current: dict[str, Kept] = {}
        for client, memory in (current or {}).items():
            self._current[client] = self._hold(client, Kept(memory))

    def __getitem__(self, client: str) -> Any:
        kept = self._current[client]
        memory, was_away = kept.read()
        if was_away:
            kept.hold(memory)
            self._hold(client, kept)
        elif kept in self._recent:
            self._recent.move_to_end(kept)
        return memory

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, client: object) -> bool:
        return client in self._current

    def __reduce__(self) -> tuple[Any, ...]:
        return Memories, (dict(self), self.budget)

    def pend(self, client: str, memory: Tree | None, index: int = 0) -> None:
        """Takes a client's new memory, to be current when the round commits.

        Where a client answers twice in a round, the answer with the larger ``index`` counts, whichever comes first.
        """
        before = self._pending.get(client)
        if memory is None or (before is not None and before[0] > index):
            return
        if before is not None:
            self._let_go(before[1])
        self._pending[client] = index, self._hold(client, Kept(memory))

    def commit(self, counted: Collection[int] | None = None) -> None:
        """The round counts: pending memories become current; those of the indices that ``counted``, where given."""
        self.commits, self.counted = self.commits + 1, counted
        pending, self._pending = self._pending, {}
        for client, (index, kept) in pending.items():
            if counted is not None and index not in counted:
                self._let_go(kept)
                continue
            if client in self._current:
                self._let_go(self._current[client])
            self._current[client] = kept
            self._changed.add(client)

    def discard(self) -> None:
        """The round is void: pending memories are forgotten."""
        self.commit(counted=())

    def changed(self) -> Mapping[str, Any]:
        """Memories changed since the last call: what a checkpoint writes. Read from disk as they are asked for."""
        changed = Changed({client: self._current[client] for client in sorted(self._changed)})
        self._changed = set()
        return changed

    def _hold(self, client: str, kept: Kept) -> Kept:
        """Counts a memory that is held, the latest in use, and makes room for it."""
        self._recent[kept] = client
        self.held += kept.size
        while self.budget is not None and self.held > self.budget:
            oldest, owner = self._recent.popitem(last=False)
            self.held -= oldest.size
            self._file = self._file or Spill()
            try:
                oldest.spill(self._file)
            except WireError as error:
                error.add_note(f"while writing the memory of client {owner!r} to disk, beyond memory_budget")
                raise
        return kept

    def _let_go(self, kept: Kept) -> None:
        if self._recent.pop(kept, None) is not None:
            self.held -= kept.size


class Changed(Mapping[str, Any]):
    """Memories as they were when this was made, whatever has become of their clients since."""

    def __init__(self, kept: dict[str, Kept]) -> None:
        self._kept = kept

    def __getitem__(self, client: str) -> Any:
        return self._kept[client].read()[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def usual_budget() -> int:
    """Bytes for client memories where the user says nothing: a share of what this process may have at most."""
    return int(SHARE * allowed_memory())
