"""The vectorised engine at work: a block of clients becomes waves, a wave's clients are trained side by side."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import torch

from insitu.core import spans, tree
from insitu.core.descent import Descent, Job
from insitu.core.protocols import Setting
from insitu.core.types import Answer, Client, Failure, Folded, InOnePiece, Task
from insitu.engines.inline import alone, attempt
from insitu.engines.vectorized.choice import settled
from insitu.engines.vectorized.examples import Examples, Joined, Shelf, Whole, form, in_one_piece
from insitu.engines.vectorized.lanes import Finished, Lanes
from insitu.engines.vectorized.together import Together, can_fold_together
from insitu.engines.vectorized.wave import Wave, width
from insitu.rounds.blocks import joined
from insitu.rounds.client import answer, failure
from insitu.rounds.evaluate import evaluate_block

Told = Answer | Failure
Sums = dict[int, Together]
"""Block → its sum."""


class VectorizedSession:
    """Takes blocks of tasks. What comes out of one depends on the block and the number of lanes, on nothing else."""

    seats = 1

    def __init__(self, setting: Setting, choices: dict[str, Any], *, measure: bool = False) -> None:
        """``measure``: the number of lanes, and whether to compile, are found out with the first client."""
        self.setting, self.choices = setting, choices
        self.plan = setting.plan
        self._algorithm: Descent = self.plan.algorithm
        fixed_lanes = choices["lanes"] if choices["compile"] else None
        self.lanes = Lanes(self._algorithm, self.plan.learner, choices["device"], compiled=fixed_lanes)
        self._proven, self._measure = False, measure
        self.apart: bool = self.plan.reduce.needs == "each" or self.plan.stops_early()
        """Whether updates are passed on as they are, and not their sum."""
        self._shelf = Shelf()
        self._started: deque[Task] = deque()
        self._checked: set[int] = set()
        """Places whose data were looked at; what lies in memory in one piece does not change."""
        # A resumed run sums with as many threads as before: another number may give other bits.
        self._threads = torch.get_num_threads()
        if self._threads != choices["threads"]:
            torch.set_num_threads(choices["threads"])

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        work = iter(work)
        if self._measure and (first := next(work, None)) is not None:
            if first.kind == "train":
                self._settle(first)
            work = chain([first], work)
        for tasks in joined(work, self.choices["lanes"]):
            kind = tasks[0].kind
            if kind == "evaluate":
                yield from evaluate_block(self.setting, tasks)
            elif kind != "train" or self.choices.get("sequential"):
                yield from (attempt(self.setting, task) for task in tasks)
            else:
                yield from self._blocks(tasks)

    def start(self, task: Task) -> None:
        """Its turn comes after those that were started before."""
        self._started.append(task)

    def arrived(self) -> Answer | Failure:
        """Works the oldest off: what one client alone gains from lanes is the device that they are on."""
        return alone(self, self.setting, self._started.popleft(), self.lanes.device.type)

    def _settle(self, task: Task) -> None:
        """Lanes and compilation for the run, measured on its first client; where that fails, its turn will say why."""
        self._measure = False
        with suppress(Exception), spans.span("start", "measure"):
            client = self.setting.clients.at(task.place)
            own = (self.setting.memories.get(task.client) or {}).get("algorithm")
            self.plan.learner.check(client)
            job = self._algorithm.open(task, client, self.plan.learner, own)
            examples = self._whole or Joined({task.client: self.plan.learner.batch(client.data, slice(None))})
            size = width(job, self._algorithm.work().batch_size, self.plan.learner.mixes)
            wave = Wave([job], examples, size, self.lanes.device, Shelf())
            if not self.lanes.kind:
                self._choose(wave)
            self.choices.update(settled(self.lanes, wave, self.setting, self.choices))

    def close(self) -> None:
        """Lets go of the lanes' memory."""
        del self.lanes, self._shelf
        if self._threads != self.choices["threads"]:
            torch.set_num_threads(self._threads)

    def _blocks(self, tasks: Sequence[Task]) -> Iterator[Answer | Folded | Failure]:
        """One block, or several that fit into the lanes together. Each is summed by itself, as if it were alone."""
        sums = {task.block: Together(self.plan) for task in tasks}
        told = self._told(tasks, sums)
        if self.apart:
            # Where each is needed or some may turn out not to be: in the cohort's order, so that a round that is
            # complete before all were heard has the same clients.
            yield from sorted(told, key=lambda item: item.index if isinstance(item, Failure) else item.task.index)
            return
        for item in told:
            if isinstance(item, Failure):
                yield item
                continue
            with spans.span("fold", "update"):
                # One that was trained alone joins those that stand in lanes.
                value = self._here(item.update.value)
                there = replace(item, update=replace(item.update, value=value))
                refused = sums[item.task.block].add(there)
            if refused is not None:
                yield refused
        for block, together in sums.items():
            if together.reports:
                yield Folded(block, _to_cpu(together.accumulator), together.reports)

    def _told(self, tasks: Sequence[Task], sums: Sums) -> Iterator[Told]:
        """What the clients say, but for those whose updates are summed as they stand in their lanes."""
        clients: list[tuple[Task, Client]] = []
        failures: list[Failure] = []
        with spans.span("data", "clients"):
            for task in tasks:
                try:
                    clients.append((task, self.setting.clients.at(task.place)))
                except Exception as error:
                    failures.append(failure(task, error))
        yield from failures
        # Of about one length, clients end together; the order depends on the block alone.
        clients.sort(key=lambda entry: -len(entry[1].data))
        while clients:
            if self.choices.get("sequential"):
                yield from (attempt(self.setting, task) for task, _ in clients)
                return
            waves = -(-len(clients) // self.choices["lanes"])
            some = -(-len(clients) // waves)
            batch, clients = clients[:some], clients[some:]
            yield from self._some(batch, sums)

    def _some(self, clients: Sequence[tuple[Task, Client]], sums: Sums) -> Iterator[Told]:
        """As many clients as there are lanes. Their tasks are opened here: a block must not be a block of models."""
        jobs: list[Job] = []
        parts: dict[str, Any] = {}
        failures: list[Failure] = []
        whole = self._whole is not None
        with spans.span("data", "jobs"):
            for task, client in clients:
                try:
                    own = (self.setting.memories.get(task.client) or {}).get("algorithm")
                    if not whole or task.place not in self._checked:
                        self.plan.learner.check(client)
                        self._checked.add(task.place)
                    job = self._algorithm.open(task, client, self.plan.learner, own)
                    if not whole:
                        parts[task.client] = self.plan.learner.batch(client.data, slice(None))
                    jobs.append(job)
                except Exception as error:
                    failures.append(failure(task, error))
        yield from failures
        size, mixes = self._algorithm.work().batch_size, self.plan.learner.mixes

        def kin(job: Job) -> Any:
            return width(job, size, mixes), form(parts[job.task.client]) if parts else None

        for (padded, _), alike in groupby(jobs, key=kin):
            yield from self._wave(list(alike), self._whole or Joined(parts), padded, sums)

    @cached_property
    def _whole(self) -> Whole | None:
        """All clients' data, where they lie in memory in one piece and fit the device."""
        clients = self.setting.clients
        if not isinstance(clients, InOnePiece):
            return None
        with suppress(Exception), spans.span("start", "data"):  # what is wrong with them is told client by client
            return in_one_piece(clients.whole(), self.plan.learner, self.lanes.device)
        return None

    def _wave(self, jobs: Sequence[Job], examples: Examples, size: int, sums: Sums) -> Iterator[Told]:
        left = {job.task.client: job for job in jobs}
        trouble = yield from self._trained(jobs, examples, size, left, sums)
        if trouble is None:
            return
        waiting = list(left.values())
        if _out_of_memory(trouble) and len(waiting) > 1:
            yield from self._narrower(waiting, sums)
        else:
            yield from self._one_by_one(trouble, waiting)

    def _trained(
        self, jobs: Sequence[Job], examples: Examples, size: int, left: dict[str, Job], sums: Sums
    ) -> Generator[Told, None, Exception | None]:
        """One wave; takes those who are done out of ``left``. Returns what stopped it, its memory let go of."""
        try:
            with spans.span("data", "wave"):
                wave = Wave(jobs, examples, size, self.lanes.device, self._shelf)
            if not self.lanes.kind:
                with spans.span("start", "choose the step"):
                    self._choose(wave)
            for finished in self.lanes.train(wave):
                self._proven = True
                for job in finished.jobs:
                    del left[job.task.client]
                yield from self._finish(finished, sums)
        except Exception as error:
            return error.with_traceback(None)
        for text in self.lanes.said():
            self.setting.notify(text)
        return None

    def _choose(self, wave: Wave) -> None:
        given = self.choices.get("step") or ("mapped" if self.choices["compile"] else "")
        reason = self.lanes.choose(given, wave)
        self.choices["step"] = self.lanes.kind
        if reason and not given:
            self.choices["step_because"] = reason

    def _finish(self, finished: Finished, sums: Sums) -> Iterator[Told]:
        if not self.apart and finished.message is not None and can_fold_together(self.plan, finished):
            for block in dict.fromkeys(job.task.block for job in finished.jobs):
                try:
                    with spans.span("fold", "updates"):
                        refused = sums[block].add_all(finished.of_block(block, self._shelf))
                except Exception as error:
                    refused = [failure(job.task, error) for job in finished.jobs if job.task.block == block]
                yield from refused
            return
        for k, job in enumerate(finished.jobs):
            with spans.span("fold", "close"):
                told = self._close(job, tree.map(lambda x, k=k: x[k], finished.end), finished.message)
            yield told

    def _close(self, job: Job, end: Any, message: Any) -> Told:
        try:
            fixed = {
                **job.fixed,
                "message": self._here(job.fixed["message"]) if message is None else message,
                "memory": self._here(job.fixed["memory"] or {}) or None,
            }
            job = Job(job.task, job.client, job.batches, fixed, job.carry, job.dropout)
            update, own = self._algorithm.close(self.plan.learner, job, end)
            if self.apart:
                # The lane's memory is used again, so what leaves is a copy.
                update = type(update)(_to_cpu(tree.copy(update.value)), update.weight, update.metrics)
            elif self.plan.stages:
                # What a stage remembers of the client is where memories are.
                update = type(update)(_to_cpu(update.value), update.weight, update.metrics)
            own = None if own is None else _to_cpu(tree.copy(own))
            return answer(self.plan, job.task, update, own, self.setting.memories.get(job.task.client))
        except Exception as error:
            return failure(job.task, error)

    def _here(self, a: Any) -> Any:
        return tree.map(lambda x: x.to(self.lanes.device) if isinstance(x, torch.Tensor) else x, a)

    def _narrower(self, waiting: Sequence[Job], sums: Sums) -> Iterator[Told]:
        """Half as many lanes, from here on, where so many do not fit into memory."""
        lanes = max(1, len(waiting) // 2)
        self.setting.notify(
            f"{len(waiting)} lanes do not fit into the memory of {self.lanes.device}: going on with {lanes};"
            f" Vectorized(lanes={lanes}) says so from the start"
        )
        self.choices["lanes"] = lanes
        self._shelf = Shelf()
        gc.collect()
        if self.lanes.device.type == "cuda":
            torch.cuda.empty_cache()
        entries = [(job.task, job.client) for job in waiting]
        while entries:
            some, entries = entries[: self.choices["lanes"]], entries[self.choices["lanes"] :]
            yield from self._some(some, sums)

    def _one_by_one(self, error: Exception, waiting: Sequence[Job]) -> Iterator[Told]:
        """A step of all lanes failed: each client is run alone, which either shows whose fault it is, or that it is not
        the clients' but the lanes'."""
        told = [attempt(self.setting, job.task) for job in waiting]
        if not self._proven and told and all(isinstance(item, Answer) for item in told):
            self.choices["sequential"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.setting.notify(
                f"this model cannot run in lanes, so its clients run one after another ({self.choices['sequential']})"
            )
        yield from told


def _out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: torch says so by type on a GPU, and in words on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _to_cpu(value: Any) -> Any:
    return tree.map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, value)
