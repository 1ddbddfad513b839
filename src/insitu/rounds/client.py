"""The client's half of a round: one task on one client. What every engine does, or, for lanes, must equal."""

from __future__ import annotations

import traceback

from insitu.core import tree
from insitu.core.errors import UpdateError
from insitu.core.mean import alike
from insitu.core.tree import Tree
from insitu.core.types import Answer, Client, Context, Failure, Task, Update
from insitu.rounds.plan import Plan


def work(plan: Plan, task: Task, client: Client, memory: Tree | None) -> Answer:
    """The client's answer to a task of any kind. Raises what goes wrong; engines turn it into a :class:`Failure`."""
    own = (memory or {}).get("algorithm")
    update, own = plan.algorithm.local(task, client, plan.learner, own)
    return answer(plan, task, update, own, memory)


def answer(plan: Plan, task: Task, update: Update, own: Tree | None, memory: Tree | None) -> Answer:
    """The answer out of what the algorithm told: checked, and encoded by the plan's stages.

    ``own`` is the algorithm's new memory, ``memory`` the client's whole memory before the task.
    """
    if task.kind != "train":
        return Answer(task, update, memory)
    check_update(task.client, update)
    for part in ("shared", "buffers"):
        # The model says which names and shapes are right: else the first client that is wrong would shut out the rest.
        if part in update.value and task.message.get(part):
            alike(task.message[part], update.value[part], part, task.client)
    if task.discount != 1:
        late = tree.scale(update.value["shared"], task.discount)
        update = Update({**update.value, "shared": late}, update.weight, update.metrics)
    stages = dict((memory or {}).get("stages") or {})
    for i, stage in enumerate(plan.stages):
        context = Context(task.round, 0, seed=task.seed, client=task.client)
        update, kept = stage.encode(update, stages.get(str(i)), context)
        if kept is not None:
            stages[str(i)] = kept
    after = {
        **({"algorithm": own} if own is not None else {}),
        **({"stages": stages} if stages else {}),
    }
    return Answer(task, update, after or None)


def check_update(client: str, update: Update) -> None:
    """Raises UpdateError, naming client and tensor, where a value or weight is NaN, Inf or negative."""
    if (path := tree.not_finite(update.value)) is not None:
        raise UpdateError(
            f"client {client!r}: {path} of its update holds NaN or Inf, so it is not counted; a smaller"
            " learning rate or clip=… often cures it"
        )
    for part, weight in update.weight.items():
        if not 0 <= weight < float("inf"):
            raise UpdateError(f"client {client!r}: weight {weight} of {part} is not a finite number >= 0")


def failure(task: Task, error: BaseException) -> Failure:
    """An exception as a value."""
    text = f"{type(error).__name__}: {error}"
    return Failure(task.client, task.index, task.block, text, "".join(traceback.format_exception(error)))
