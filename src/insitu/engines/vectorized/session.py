"""The vectorised engine at work: continuous batching of clients over lanes, block by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from insitu.core import tree
from insitu.core.descent import Descent, Job
from insitu.core.protocols import Setting
from insitu.core.types import Answer, Failure, Folded, Report, Task
from insitu.engines.inline import attempt
from insitu.engines.vectorized.lanes import Lanes
from insitu.rounds.client import answer, failure
from insitu.rounds.fold import fold_in


class VectorizedSession:
    """Takes blocks of tasks; when a lane's client has finished, the lane takes the block's next client."""

    def __init__(self, setting: Setting, choices: dict[str, Any]) -> None:
        self.setting, self.choices = setting, choices
        self.plan = setting.plan
        algorithm: Descent = self.plan.algorithm
        self.lanes = Lanes(algorithm, self.plan.learner, choices["lanes"], choices["device"], choices["compile"])
        self._proven = False
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
        opened, failures = self._open(tasks)
        yield from failures
        if not opened:
            return
        queue = deque(sorted(opened, key=lambda pair: -len(pair[0].batches)))
        size = max(job.batches.largest() for job, _ in opened)
        batch_size = self.plan.algorithm.work().batch_size
        self.lanes.start_block([task.message for task in tasks], max(size, batch_size or 0))
        accumulator, reports = self.plan.reduce.zero(), []
        for told in self._train(queue):
            if isinstance(told, Failure):
                yield told
            elif self.plan.reduce.needs == "each":
                # The lane's memory is used again, so what leaves is a copy.
                yield Answer(told.task, told.update, told.memory)
            else:
                accumulator = fold_in(self.plan, accumulator, told)
                reports.append(told.report())
        if reports:
            yield self._folded(tasks[0].block, accumulator, reports)

    def _folded(self, block: int, accumulator: Any, reports: list[Report]) -> Folded:
        return Folded(block, _to_cpu(accumulator), reports)

    def _open(self, tasks: Sequence[Task]) -> tuple[list[tuple[Job, Any]], list[Failure]]:
        opened: list[tuple[Job, Any]] = []
        failures: list[Failure] = []
        for task in tasks:
            try:
                client = self.setting.clients.at(task.place)
                memory = self.setting.memories.get(task.client)
                own = (memory or {}).get("algorithm")
                job = self.plan.algorithm.open(task, client, self.plan.learner, own)
                opened.append((job, memory))
            except Exception as error:
                failures.append(failure(task, error))
        return opened, failures

    def _train(self, queue: deque[tuple[Job, Any]]) -> Iterator[Answer | Failure]:
        memories: dict[str, Any] = {}
        while queue or self.lanes.busy():
            while queue and (lane := self.lanes.free()) is not None:
                job, memories[job.task.client] = queue.popleft()
                self.lanes.put(lane, job, self.plan.learner.batch(job.client.data, slice(None)))
            try:
                finished = self.lanes.step()
                self._proven = True
            except Exception as error:
                yield from self._one_by_one(error, queue)
                return
            for lane in finished:
                job, end = self.lanes.take(lane)
                yield self._close(job, end, memories.pop(job.task.client))

    def _close(self, job: Job, end: Any, memory: Any) -> Answer | Failure:
        try:
            update, own = self.plan.algorithm.close(self.plan.learner, job, end)
            if self.plan.reduce.needs == "each":
                update = type(update)(_to_cpu(tree.copy(update.value)), update.weight, update.metrics)
            own = None if own is None else _to_cpu(tree.copy(own))
            return answer(self.plan, job.task, update, own, memory)
        except Exception as error:
            return failure(job.task, error)

    def _one_by_one(self, error: Exception, queue: deque[tuple[Job, Any]]) -> Iterator[Answer | Failure]:
        """A step of all lanes failed: each client is run alone, which either works or shows whose fault it is."""
        jobs = [*self.lanes.drop_all(), *(job for job, _ in queue)]
        told = [attempt(self.setting, job.task) for job in jobs]
        if not self._proven and any(isinstance(item, Answer) for item in told):
            self.choices["sequential"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.setting.notify(
                f"this model cannot run in lanes, so its clients run one after another ({self.choices['sequential']})"
            )
        yield from told


def _to_cpu(value: Any) -> Any:
    return tree.map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, value)
