"""Rounds in real time on ranks: rank 0 serves, as a parameter server does, and the others work at their own pace.

Rank 0 alone runs rounds: whoever has finished says so on its line to rank 0 (:mod:`insitu.engines.spmd.watch`), is
called, tells its answer, and gets the next client with the newest model and the client's memory. Nobody meets anybody
else, so a slow rank holds nobody up; a rank that dies is noticed as ever, and ends the run, which can be resumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from insitu.core.errors import EngineError
from insitu.core.protocols import Session, Setting
from insitu.core.tree import Tree
from insitu.core.types import Answer, Failure, Task, Update
from insitu.engines.inline import alone
from insitu.engines.spmd.homes import Homes
from insitu.engines.spmd.ranks import Ranks

WAITING = "waiting for an answer"


class Desk:
    """Rank 0's: who works on what. A client goes back to the rank that had it last, where that one is free."""

    def __init__(self, setting: Setting, ranks: Ranks) -> None:
        self._setting, self._ranks = setting, ranks
        self._free = list(range(1, ranks.world))
        self._at_work: dict[int, Task] = {}
        self._waiting: deque[Task] = deque()
        self._last: dict[str, int] = {}
        if ranks.serving and ranks.rank == 0:
            s = "s work" if ranks.world > 2 else " works"
            setting.notify(f"rank 0 serves, the other {ranks.world - 1} rank{s}, each at its own pace")

    def start(self, task: Task) -> None:
        """A free rank begins at once; otherwise the next to be free."""
        self._waiting.append(task)
        self._hand_out()

    def arrived(self) -> Answer | Failure:
        """What the next rank to finish tells. Raises EngineError, naming the rank, where one is gone."""
        rank = self._ranks.letter(WAITING)
        told = self._ranks.take(rank, WAITING)
        task = self._at_work.pop(rank)
        self._free.append(rank)
        self._hand_out()
        if told["wanted"]:
            self._ranks.stop_wanted = True
        for text in told["said"]:
            self._setting.notify(f"rank {rank}: {text}")
        return unpacked(told, task)

    def dismiss(self, last: Tree) -> None:
        """Tells every rank, once it has done what it was at, how the run ended; what it did is not wanted any more."""
        with suppress(EngineError):  # a rank that dies now takes nothing with it
            while self._at_work:
                rank = self._ranks.letter("waiting for the last to finish")
                self._ranks.turn_down(rank)
                del self._at_work[rank]
            for rank in range(1, self._ranks.world):
                self._ranks.hand({"last": last}, rank, "ending the run")
            self._ranks.meet("ending the run")

    def _hand_out(self) -> None:
        while self._waiting and self._free:
            task = next((t for t in self._waiting if self._last.get(t.client) in self._free), self._waiting[0])
            self._waiting.remove(task)
            rank = self._last.get(task.client)
            if rank not in self._free:
                rank = self._free[0]
            self._free.remove(rank)
            self._last[task.client], self._at_work[rank] = rank, task
            names = ("run", "round", "version", "client", "seed", "index", "place", "block")
            order = {
                "task": {name: getattr(task, name) for name in names},
                "message": task.message,
                "memory": self._setting.memories.get(task.client),
            }
            self._ranks.hand(order, rank, f"handing client {task.client!r} to rank {rank}")


def work(
    setting: Setting, ranks: Ranks, session: Session, homes: Homes, device: str, said: list[str],
    wanted: Callable[[], bool],
) -> Tree:  # fmt: skip
    """The other ranks': client after client, until rank 0 ends the run. Returns its last word.

    ``session`` works on devices other than the CPU, ``said`` are its notices, which rank 0 passes on.
    """
    while True:
        ranks.letter("waiting for work")
        order = ranks.take(0, "waiting for work")
        if "last" in order:
            ranks.meet("ending the run")
            last: Tree = order["last"]
            return last
        task = Task(kind="train", message=order["message"], **order["task"])
        homes.lend({task.client: order["memory"]})
        told = packed(alone(session, setting, task, device))
        ranks.report({**told, "wanted": wanted(), "said": list(said)}, f"telling what came of {task.client!r}")
        said.clear()


def packed(told: Answer | Failure) -> dict[str, Any]:
    """An answer without what rank 0 knows of it, or a failure, as a tree."""
    if isinstance(told, Failure):
        return {"error": told.error, "trace": told.trace}
    update = told.update
    return {
        "value": update.value,
        "weight": {part: float(w) for part, w in update.weight.items()},
        "metrics": {name: float(x) for name, x in update.metrics.items()},
        "memory": told.memory,
    }


def unpacked(told: Mapping[str, Any], task: Task) -> Answer | Failure:
    """The same again."""
    if "error" in told:
        return Failure(task.client, task.index, task.block, told["error"], told["trace"])
    return Answer(task, Update(told["value"], told["weight"], told["metrics"]), told["memory"])
