"""The vectorised engine at work: continuous batching of clients over lanes, block by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from insitu.core import tree
from insitu.core.descent import Descent, Job
from insitu.core.errors import UpdateError
from insitu.core.protocols import Setting
from insitu.core.types import Answer, Client, Failure, Folded, Report, Task
from insitu.engines.inline import attempt
from insitu.engines.vectorized.lanes import Lanes
from insitu.rounds.client import answer, failure
from insitu.rounds.fold import fold_in


@dataclass(frozen=True)
class Entry:
    """A client that waits for a lane: its task, itself, its memory before the task."""

    task: Task
    client: Client
    memory: Any


class VectorizedSession:
    """Takes blocks of tasks; when a lane's client has finished, the lane takes the block's next client."""

    def __init__(self, setting: Setting, choices: dict[str, Any]) -> None:
        self.setting, self.choices = setting, choices
        self.plan = setting.plan
        algorithm: Descent = self.plan.algorithm
        self.lanes = Lanes(algorithm, self.plan.learner, choices["lanes"], choices["device"], choices["compile"])
        self._proven = False
        self._form: Any = None
        self._memories: dict[str, Any] = {}
        # A resumed run sums with as many threads as before: another number may give other bits.
        self._threads = torch.get_num_threads()
        if self._threads != choices["threads"]:
            torch.set_num_threads(choices["threads"])

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        for (kind, _), tasks in groupby(work, key=lambda task: (task.kind, task.block)):
            if kind != "train" or self.choices.get("sequential"):
                for task in tasks:
                    yield attempt(self.setting, task)
            else:
                yield from self._block(list(tasks))

    def close(self) -> None:
        """Lets go of the lanes' memory."""
        del self.lanes
        if self._threads != self.choices["threads"]:
            torch.set_num_threads(self._threads)

    def _block(self, tasks: Sequence[Task]) -> Iterator[Answer | Folded | Failure]:
        """One block, longest client first so that lanes end together; the order depends on the block alone."""
        self.lanes.drop_all()  # a block that was closed early leaves its clients behind
        ready, told = self._load(tasks)
        queue = deque(sorted(ready, key=lambda entry: -len(entry.client.data)))
        self.lanes.start_block([task.message for task in tasks], self.plan.algorithm.work().batch_size)
        if self._one_at_a_time():
            # In the cohort's order, so that a round that is complete before all were heard has the same clients.
            told.extend(self._train(queue))
            yield from sorted(told, key=lambda item: item.index if isinstance(item, Failure) else item.task.index)
            return
        accumulator, reports = self.plan.reduce.zero(), list[Report]()
        for item in (*told, *self._train(queue)) if told else self._train(queue):
            if isinstance(item, Answer):
                try:
                    accumulator = fold_in(self.plan, accumulator, item)
                except UpdateError as error:
                    yield failure(item.task, error)
                else:
                    reports.append(item.report())
            else:
                yield item
        if reports:
            yield Folded(tasks[0].block, _to_cpu(accumulator), reports)

    def _one_at_a_time(self) -> bool:
        """Whether answers are passed on as they are: where each is needed, or some may turn out not to be."""
        return bool(self.plan.reduce.needs == "each" or self.plan.stops_early())

    def _load(self, tasks: Sequence[Task]) -> tuple[list[Entry], list[Answer | Failure]]:
        """The clients of a block with their data, and the failures of those that have none to give."""
        ready: list[Entry] = []
        told: list[Answer | Failure] = []
        for task in tasks:
            try:
                client = self.setting.clients.at(task.place)
                ready.append(Entry(task, client, self.setting.memories.get(task.client)))
            except Exception as error:
                told.append(failure(task, error))
        return ready, told

    def _seat(self, entry: Entry, lane: int) -> Answer | Failure | None:
        """Gives a client a lane. Returns its answer or failure where it cannot have one.

        Its task is opened here and not before: a block of clients must not be a block of models.
        """
        try:
            own = (entry.memory or {}).get("algorithm")
            job = self.plan.algorithm.open(entry.task, entry.client, self.plan.learner, own)
            columns = self.plan.learner.batch(entry.client.data, slice(None))
        except Exception as error:
            return failure(entry.task, error)
        self._form = self._form or _form(columns)
        if _form(columns) != self._form:
            return attempt(self.setting, entry.task)  # its columns cannot stand beside the others'
        self.lanes.put(lane, job, columns)
        self._memories[entry.task.client] = entry.memory
        return None

    def _train(self, queue: deque[Entry]) -> Iterator[Answer | Failure]:
        self._form, self._memories = None, {}
        while queue or self.lanes.busy():
            while queue and (lane := self.lanes.free()) is not None:
                if (told := self._seat(queue.popleft(), lane)) is not None:
                    yield told
            if not self.lanes.busy():
                return
            try:
                finished = self.lanes.step()
                self._proven = True
            except Exception as error:
                yield from self._one_by_one(error, queue)
                return
            for lane in finished:
                job, end = self.lanes.take(lane)
                yield self._close(job, end, self._memories.pop(job.task.client))

    def _close(self, job: Job, end: Any, memory: Any) -> Answer | Failure:
        try:
            update, own = self.plan.algorithm.close(self.plan.learner, job, end)
            if self._one_at_a_time():
                # The lane's memory is used again, so what leaves is a copy.
                update = type(update)(_to_cpu(tree.copy(update.value)), update.weight, update.metrics)
            own = None if own is None else _to_cpu(tree.copy(own))
            return answer(self.plan, job.task, update, own, memory)
        except Exception as error:
            return failure(job.task, error)

    def _one_by_one(self, error: Exception, queue: deque[Entry]) -> Iterator[Answer | Failure]:
        """A step of all lanes failed: each client is run alone, which either works or shows whose fault it is."""
        tasks = [*(job.task for job in self.lanes.drop_all()), *(entry.task for entry in queue)]
        told = [attempt(self.setting, task) for task in tasks]
        if not self._proven and any(isinstance(item, Answer) for item in told):
            self.choices["sequential"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.setting.notify(
                f"this model cannot run in lanes, so its clients run one after another ({self.choices['sequential']})"
            )
        yield from told


def _to_cpu(value: Any) -> Any:
    return tree.map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, value)


def _form(columns: Any) -> Any:
    """Dtypes and shapes of one example: clients whose forms differ cannot share a stack."""
    return [(path, column.dtype, tuple(column.shape[1:])) for path, column in tree.leaves(columns)]
