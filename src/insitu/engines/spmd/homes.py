"""Where clients' memories live: with the rank that worked on the client last.

Ranks have consecutive clients, so in a round of everyone memories stay where they are; they move where a client at the
edge of a rank's share falls to another one, and all of them when the number of ranks changes. Where there is a store,
rank 0 gets a copy of what has changed, for the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from insitu.core.protocols import Setting
from insitu.core.types import Answer, Report, Task
from insitu.engines.spmd.meta import Told
from insitu.engines.spmd.ranks import Ranks
from insitu.rounds.memory import Memories


class Homes(Mapping[str, Any]):
    """Client id → memory, of the clients that this rank works on now."""

    def __init__(self, setting: Setting, ranks: Ranks) -> None:
        self._own, self._ranks, self._stored = setting.memories, ranks, setting.stored
        self._moved: dict[str, Any] = {}
        self._home: dict[str, int] = {}
        # What is known at the start was read from the store, by rank 0.
        for rank, clients in enumerate(ranks.gather(sorted(setting.memories), "comparing what clients remember")):
            for client in clients:
                self._home.setdefault(client, rank)
        self._commits = 0
        self._pending: dict[int, tuple[str, int]] = {}

    def __getitem__(self, client: str) -> Any:
        return self._moved[client] if client in self._moved else self._own[client]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._own, **self._moved})

    def __len__(self) -> int:
        return len({**self._own, **self._moved})

    def anything(self) -> bool:
        """Whether any client remembers anything, as far as is known on every rank."""
        return bool(self._home or self._pending)

    def here(self) -> None:
        """Rank 0 works on its first block before anything has moved: what is known at the start is its own."""
        self._moved = {}

    def lend(self, memories: Mapping[str, Any]) -> None:
        """In real time rank 0 has all memories, and a client's comes with its task."""
        self._moved = dict(memories)

    def gather(self, tasks: Sequence[Task], owners: Sequence[int]) -> None:
        """The memories of these tasks' clients come to the ranks that are to work on them."""
        self._learn()
        letters: dict[tuple[int, int], dict[str, Any]] = {}
        for task, owner in zip(tasks, owners, strict=True):
            home = self._home.get(task.client)
            if home is None or home == owner or (owner == 0 and self._stored):
                continue
            mine = home == self._ranks.rank
            letters.setdefault((home, owner), {})[task.client] = self._own.get(task.client) if mine else None
        self._moved = {}
        for memories in self._ranks.post(letters, "moving clients' memories").values():
            self._moved |= memories

    def told(self, found: Sequence[Told], mine: Sequence[Report | Answer], kind: str) -> dict[int, Any]:
        """New memories by task: those made here, and on rank 0 all of them where there is a store."""
        if kind != "train" or not any(one.kept for one in found):
            return {}
        own = {_index(item): item.memory for item in mine if item.memory is not None}
        for rank, one in enumerate(found):
            clients = {r.index: r.client for r in one.reports}
            clients |= {a.task.index: a.task.client for a in one.answers}
            self._pending |= {index: (clients[index], rank) for index in one.kept}
        if not self._stored:
            return own
        letters = {
            (rank, 0): {str(index): own.get(index) for index in one.kept}
            for rank, one in enumerate(found)
            if rank and one.kept
        }
        for memories in self._ranks.post(letters, "storing clients' memories").values():
            own |= {int(index): memory for index, memory in memories.items()}
        return own

    def _learn(self) -> None:
        """Where a round counts, memories have become current where they were made."""
        if not isinstance(self._own, Memories) or self._own.commits == self._commits:
            return
        self._commits = self._own.commits
        counted = self._own.counted
        for index, (client, rank) in self._pending.items():
            if counted is None or index in counted:
                self._home[client] = rank
        self._pending = {}


def _index(item: Report | Answer) -> int:
    return item.task.index if isinstance(item, Answer) else item.index
