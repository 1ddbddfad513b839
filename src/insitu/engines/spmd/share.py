"""Who works on which blocks: consecutive ones, so many that all ranks are likely to end at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from insitu.core.descent import Descent
from insitu.core.protocols import Setting
from insitu.core.types import Task


def blocks(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks, block by block."""
    return [list(block) for _, block in groupby(tasks, key=lambda task: task.block)]


def load(setting: Setting, tasks: Sequence[Task]) -> float:
    """What a block is expected to cost: steps of gradient descent, examples of everything else."""
    sizes = [setting.clients.size_at(task.place) or 1 for task in tasks]
    algorithm = setting.plan.algorithm
    if tasks[0].kind != "train" or not isinstance(algorithm, Descent):
        return float(sum(sizes))
    work = algorithm.work()
    if work.steps is not None:
        return float(work.steps * len(tasks))
    return float(sum(-(-size // min(work.batch_size or size, size)) * (work.epochs or 1) for size in sizes))


def ends(loads: Sequence[float], seconds: Sequence[float]) -> list[int]:
    """Where each rank's blocks end: rank r has ``blocks[ends[r-1]:ends[r]]``.

    ``loads`` by block, ``seconds`` a unit of load takes by rank. The latest rank ends as early as consecutive shares
    allow, to a thousandth.
    """
    low = sum(loads) / sum(1 / s for s in seconds)  # all end together
    high = max(seconds) * sum(loads)
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if _filled(loads, seconds, middle)[-1] == len(loads) else (middle, high)
    return _filled(loads, seconds, high)


def _filled(loads: Sequence[float], seconds: Sequence[float], until: float) -> list[int]:
    """Each rank takes as many blocks as it can do in ``until`` seconds."""
    found, at = [], 0
    for each in seconds:
        left = until * (1 + 1e-9)
        while at < len(loads) and loads[at] * each <= left:
            left -= loads[at] * each
            at += 1
        found.append(at)
    return found
