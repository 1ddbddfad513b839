"""Blocks of tasks, as engines take them: cut where the server cut them, several together where that costs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TypeVar

from insitu.core.protocols import Setting
from insitu.core.types import Task

T = TypeVar("T")


def joined(work: Iterable[Task], most: int) -> Iterator[list[Task]]:
    """Blocks of tasks of one kind, several together as long as they are no more than ``most`` clients."""
    for _, of_a_kind in groupby(work, key=lambda task: task.kind):
        yield from packed((list(block) for _, block in groupby(of_a_kind, key=lambda task: task.block)), most)


def packed(blocks: Iterable[list[T]], most: int) -> Iterator[list[T]]:
    """Blocks in their order, several together as long as they have no more than ``most`` members."""
    held: list[T] = []
    for block in blocks:
        if held and len(held) + len(block) > most:
            yield held
            held = []
        held.extend(block)
    if held:
        yield held


def cohort_size(setting: Setting) -> int:
    """The clients that are asked in the first round, at least one."""
    plan, population = setting.plan, len(setting.clients)
    wanted = plan.buffered.size if plan.buffered else len(plan.cohort.sample(population, setting.seed, 1))
    asked: int = plan.policy.ask(wanted, population)
    return max(1, asked)


def blocks_in_a_round(setting: Setting) -> int:
    """The blocks that the first round's cohort is cut into, at least one."""
    cohort = cohort_size(setting)
    size: int = setting.plan.block_size(cohort)
    return max(1, -(-cohort // size))
