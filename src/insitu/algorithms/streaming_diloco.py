"""StreamingDiLoCo: DiLoCo whose model travels in fragments, one a round, so that no round sends all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any, ClassVar

from insitu.algorithms.diloco import DiLoCo
from insitu.core import checks, tree
from insitu.core.descent import Job, Work, descend
from insitu.core.errors import DataError, PlanError
from insitu.core.optim import Sgd, optimizer
from insitu.core.tree import Tree
from insitu.core.types import ByClient, Client, Task, Total, Variables


@dataclass(frozen=True, kw_only=True)
class StreamingDiLoCo(DiLoCo):
    r"""The model is cut into P fragments of about equal bytes; after every round one of them is synchronised, in turn.

    .. math:: \Delta_p = \frac{1}{n} \sum_i \left( \theta_p - \theta_p^i \right), \qquad
              \theta_p \leftarrow \mathrm{Nesterov}_p(\theta_p, \Delta_p), \qquad p = r \bmod P

    Between its turns a fragment stays as its worker trained it. A fragment is synchronised every P · ``steps`` steps,
    so in DiLoCo's terms H = P · ``steps``: as many bytes in all, and a round sends 1/P of the model up and 1/P down.
    Workers keep the model, so all of them take part in every round (the plan's cohort is everyone); one that misses a
    round goes on with its own copy of the fragment it missed until that fragment's next turn.

    fragments  P; no more than the model has tensors
    steps      the steps between two fragments' turns; 50 // P where neither ``steps`` nor ``epochs`` is given
    others     those of :class:`~insitu.algorithms.diloco.DiLoCo`

    A fragment is a run of neighbouring tensors in the model's order, cut so that the largest has as few bytes as can
    be.
    Limit case: ``fragments=1`` is DiLoCo, bit for bit.

    Reference: Douillard et al., *Streaming DiLoCo with Overlapping Communication*, 2025. Deviations:
    communication does not overlap with training (their α = 0), fragments hold neighbouring layers (their "sequential"
    pattern), and nothing is quantised here: stages do that.
    """

    fragments: int = 2
    limit: ClassVar[str | None] = "fragments=1 is diloco"
    needs_everyone: ClassVar[bool] = True
    tells_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(fragments=self.fragments)

    def work(self) -> Work:
        work = super().work()
        if self.epochs is None and self.steps is None:
            return changed(work, steps=max(1, (self.usual_steps or 1) // self.fragments))
        return work

    def init(self, start: Variables | None) -> dict[str, Any]:
        state = super().init(start)
        cut(state["shared"], self.fragments)  # refuses too many of them
        return state

    def ask(self, state: dict[str, Any], round: int) -> Tree | ByClient:
        message = super().ask(state, round)
        assert not isinstance(message, ByClient)
        rest = {name: part for name, part in message.items() if name != "shared"}
        return {**rest, "fragment": state["shared"] if round == 1 else self._of(state["shared"], round - 1)}

    def open(self, task: Task, client: Client, learner: Any, memory: Tree | None) -> Job:
        """The worker's own model with what has come of the last round's fragment."""
        own, told = (memory or {}).get("method"), task.message["fragment"]
        if own is None and task.round > 1:
            raise DataError(
                f"client {client.id!r} comes to round {task.round} without the model, which StreamingDiLoCo's workers"
                " keep: it took part in no round before. Start with it, or use DiLoCo, which sends the whole model"
            )
        held = {"shared": told, "anchor": told} if own is None else {k: put(own[k], told) for k in ("shared", "anchor")}
        message = {**task.message, "shared": held["shared"]}
        job = super().open(changed(task, message=message), client, learner, {**(memory or {}), "method": held})
        # What steps read of the message is the same for all workers, so that engines need not hold it for each.
        return changed(job, task=task, fixed={**job.fixed, "message": task.message})

    def report(self, job: Job, end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], Tree | None]:
        anchor, turn = job.fixed["memory"]["anchor"], job.task.round
        change = tree.subtract(self._of(end["shared"], turn), self._of(anchor, turn))
        weight = self.weigh(len(job.client.data))
        return {"shared": change}, {"shared": weight}, {"shared": end["shared"], "anchor": anchor}

    def absorb(self, state: dict[str, Any], total: Total, round: int) -> dict[str, Any]:
        servers = state.get("server") or {}
        turn = str((round - 1) % self.fragments)
        part = {"shared": self._of(state["shared"], round), "server": servers.get(turn)}
        after = descend(part, total.value["shared"], optimizer(self.server or Sgd()), self.server_lr)
        kept = {} if after["server"] is None else {turn: after["server"]}
        return {**state, "shared": put(state["shared"], after["shared"]), "server": {**servers, **kept}}

    def _of(self, shared: Tree, round: int) -> dict[str, Any]:
        """The fragment whose turn it is in this round."""
        return pick(shared, cut(shared, self.fragments)[(round - 1) % self.fragments])

    @classmethod
    def example(cls) -> StreamingDiLoCo:
        return cls(lr=0.02, steps=4, batch_size=8, fragments=2)


def cut(shared: Tree, fragments: int) -> list[list[str]]:
    """Paths of the tensors in each fragment: runs of neighbours, the largest run as small as can be, none empty."""
    paths, sizes = zip(*((path, int(leaf.nbytes)) for path, leaf in tree.leaves(shared)), strict=True)
    if fragments > len(paths):
        raise PlanError(
            f"fragments={fragments} are more than the model's {len(paths)} tensors, the least that can travel by"
            " itself: take fewer"
        )
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_runs(sizes, middle, 1)) <= fragments else (middle + 1, high)
    runs = _runs(sizes, low, fragments)
    ends = [sum(runs[: i + 1]) for i in range(len(runs))]
    return [list(paths[end - run : end]) for run, end in zip(runs, ends, strict=True)]


def _runs(sizes: tuple[int, ...], most: int, least: int) -> list[int]:
    """Lengths of runs of neighbours that hold ``most`` bytes each, filled in order; at least ``least`` of them."""
    runs, held = [0], 0
    for i, size in enumerate(sizes):
        left = len(sizes) - i  # so many tensors are still to be placed, and so many runs are still to be begun:
        if runs[-1] and (held + size > most or left <= least - len(runs)):
            runs.append(0)
            held = 0
        runs[-1] += 1
        held += size
    return runs


def pick(a: Tree, paths: Iterable[str]) -> dict[str, Any]:
    """The part of a tree that holds these leaves."""
    wanted, found = set(paths), {}
    for key, value in a.items():
        if tree.is_branch(value):
            inside = {path.removeprefix(f"{key}/") for path in wanted if path.startswith(f"{key}/")}
            if inside and (part := pick(value, inside)):
                found[key] = part
        elif key in wanted:
            found[key] = value
    return found


def put(a: Tree, part: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with these of its leaves replaced."""
    return {
        key: (put(value, part[key]) if tree.is_branch(value) else part[key]) if key in part else value
        for key, value in a.items()
    }
