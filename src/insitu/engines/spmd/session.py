"""The engine at work on one rank: its share of the blocks worked off here, and what came out exchanged.

Every rank walks all tasks of a round and yields the same items, so that its server comes to the same total.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from typing import Any

import torch

from insitu.core import tree
from insitu.core.errors import EngineError, UpdateError
from insitu.core.mean import Mean
from insitu.core.protocols import Differentiable, Engine, Setting, Steps
from insitu.core.tree import Tree
from insitu.core.types import Answer, Failure, Folded, Report, Task
from insitu.engines.inline import Inline, alone
from insitu.engines.spmd import desk, meta, share
from insitu.engines.spmd.homes import Homes
from insitu.engines.spmd.ranks import Ranks
from insitu.engines.spmd.steps import Stepper
from insitu.engines.vectorized import Vectorized
from insitu.engines.vectorized.session import VectorizedSession
from insitu.rounds.fold import in_blocks

OWN = ("ranks", "backend", "inner", "seconds", "gradient")
"""The choices that are this engine's; all others are the inner engine's."""
NEWEST = 0.2
"""How much a round counts in what is known of a rank's speed."""
STEADY = 0.15
"""How far measured speeds may be from those in use before shares follow them."""


class SpmdSession:
    """One rank at work on one run."""

    def __init__(self, setting: Setting, ranks: Ranks, options: Mapping[str, Any], hook: str | None) -> None:
        self.setting, self.ranks, self.hook = setting, ranks, hook
        self._said: list[str] = []
        given = {name: value for name, value in setting.choices.items() if name not in OWN}
        self.homes = Homes(setting, ranks)
        tell = setting.notify if ranks.rank == 0 else self._said.append
        self._inner_setting = replace(setting, memories=self.homes, notify=tell, choices=given)
        self._engine = self._inner(options)
        self.inner = self._engine.open(self._inner_setting)
        self.device: str = options["device"]
        self._kind = torch.device(self.device).type
        self._settled = "step" in given or isinstance(self._engine, Inline)
        known = setting.choices.get("seconds")
        self._seconds = list(known) if known and len(known) == ranks.world else [1.0] * ranks.world
        self._measured: list[float] = []
        self._narrow_said = False
        self._stepper: Stepper | None = None
        buffered = setting.plan.buffered
        self.ranks.serving = ranks.world > 1 and buffered is not None and buffered.real
        self._desk = desk.Desk(setting, ranks)
        self._started: deque[Task] = deque()
        self.choices: dict[str, Any] = {}
        self._choose()

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        if self.ranks.serving:  # rank 0 alone: the others are at work for it
            yield from self.inner.run(work)
            return
        tasks = list(work)
        if not tasks:
            return
        blocks = share.blocks(tasks)
        train = tasks[0].kind == "train"
        apart = self._each(blocks)
        if train and isinstance(self.inner, VectorizedSession):
            self.inner.apart = apart
        first = self._settle(tasks)
        loads = [share.load(self.setting, block) for block in blocks]
        ends = share.ends(loads, self._seconds)
        if train:
            self._say_narrow(len(blocks))
            owners = [rank for rank, (a, b) in enumerate(_pairs(ends)) for _ in chain.from_iterable(blocks[a:b])]
            self.homes.gather(tasks, owners)
        a, b = _pairs(ends)[self.ranks.rank]
        began = time.perf_counter()
        if train and isinstance(self.inner, VectorizedSession):
            self.inner.apart = apart  # a new one, where the run's first block has just been
        mine = self._work(blocks[a:b], first, whole=not apart)
        busy = time.perf_counter() - began
        done = sum(loads[a:b])
        yield from self._exchanged(blocks, ends, mine, busy / done if done and not first else 0.0)

    @property
    def seats(self) -> int:
        """The ranks that work: all but rank 0, which serves, unless it is alone."""
        return max(1, self.ranks.world - 1)

    def start(self, task: Task) -> None:
        """On a rank that is free, or as soon as one is."""
        if self.ranks.serving:
            self._desk.start(task)
        else:
            self._started.append(task)

    def arrived(self) -> Answer | Failure:
        """What the next rank to finish tells."""
        if self.ranks.serving:
            return self._desk.arrived()
        return alone(self.inner, self._inner_setting, self._started.popleft(), self._kind)

    def follow(self, wanted: Callable[[], bool]) -> Tree | None:
        """Works for rank 0 until the run ends; None on rank 0, and where all ranks run the same rounds."""
        if not self.ranks.serving or self.ranks.rank == 0:
            return None
        return desk.work(self._inner_setting, self.ranks, self.inner, self.homes, self._kind, self._said, wanted)

    def dismiss(self, last: Tree) -> None:
        """The last word to those that work for this rank."""
        if self.ranks.serving and self.ranks.rank == 0:
            self._desk.dismiss(last)

    def take_steps(self, state: Any, round: int, first: int) -> Steps | None:
        """The steps of a round with DistributedDataParallel, where the model allows it; a report a rank."""
        plan = self.setting.plan
        if self._stepper is None:
            found = self._trainable()
            if isinstance(found, str):
                self._without_stepper(found)
                return None
            self._stepper = Stepper(self.setting, self.ranks, found, self.device, self.hook)
            self.choices["gradient"] = "DistributedDataParallel" if self.ranks.world > 1 else "one module"
        self.ranks.meet(f"beginning round {round}")
        try:
            state, sums, told = self._stepper.take(plan.algorithm, state, round, first)
        except RuntimeError as error:
            raise self.ranks.explained(error, f"averaging gradients in round {round}") from error
        trouble = tree.not_finite({"shared": state["shared"]})
        all_told = self.ranks.gather([sums, told], f"exchanging what came of round {round}")
        reports = [Report(f"rank {r}", r, own, size) for r, (own, size) in enumerate(all_told)]
        if trouble is not None:
            return Steps(state, reports, f"{trouble} is NaN or Inf after these steps: take a smaller lr, or clip")
        return Steps(state, reports)

    def _trainable(self) -> Any:
        """The model as a module, or why its gradients are averaged by other means."""
        plan = self.setting.plan
        if plan.stages:
            return f"{type(plan.stages[0]).__name__} is done to every client's update"
        if not isinstance(plan.reduce, Mean):
            return f"{type(plan.reduce).__name__} is no mean"
        if not isinstance(plan.learner, Differentiable):
            return f"{type(plan.learner).__name__} has no torch module"
        return plan.learner.trainable()

    def _without_stepper(self, reason: str) -> None:
        if "gradient" in self.choices:
            return
        if self.hook is not None:
            raise EngineError(f"hook={self.hook!r} is DistributedDataParallel's, which is not used: {reason}")
        self.choices["gradient"] = "client by client"
        if self.ranks.rank == 0:
            self.setting.notify(f"gradients are averaged client by client: {reason}")

    def close(self) -> None:
        """Ends the inner session; the ranks stay together for the next run."""
        self.ranks.serving = self.ranks.stop_wanted = False
        self.inner.close()

    # ------------------------------------------------------------ this rank's share

    def _inner(self, options: Mapping[str, Any]) -> Engine:
        """Lanes where the plan allows them, else one client after another."""
        engine = Vectorized(**options)
        if (refused := engine.refuses(self.setting.plan)) is None:
            return engine
        if options["lanes"] is not None:
            self._inner_setting.notify(f"lanes={options['lanes']} has no effect: {refused}")
        return Inline()

    def _settle(self, tasks: Sequence[Task]) -> list[Any]:
        """The run's first block, on rank 0, shows how this model can be trained; then all ranks choose the same.

        Returns what came of that block, so that it is not worked off again.
        """
        if self._settled or tasks[0].kind != "train":
            return []
        first: list[Any] = []
        if self.ranks.rank == 0:
            self.homes.here()
            block = share.blocks(tasks)[0]
            self._ahead(block)
            first = list(self.inner.run(block))
        # TorchVersion is text of a kind that does not travel.
        found = {n: str(v) if isinstance(v, str) else v for n, v in self.inner.choices.items() if n != "device"}
        found = self.ranks.first([found, bool(first)], "waiting for the run's first block")
        chosen = found[0]
        if self.ranks.rank:
            self.inner.close()
            chosen = {**chosen, "device": self.inner.choices["device"]}
            self.inner = self._engine.open(replace(self._inner_setting, choices=chosen))
        self._settled = "step" in chosen or "sequential" in chosen
        self._choose()
        return first

    def _work(self, blocks: Sequence[Sequence[Task]], first: list[Any], whole: bool) -> list[Answer | Folded | Failure]:
        """This rank's items: a sum a block, or every answer as it is."""
        tasks = list(chain.from_iterable(blocks))
        if first:
            tasks = tasks[len(blocks[0]) :]
        self._ahead(tasks)
        items = chain(first, self.inner.run(tasks)) if tasks else iter(first)
        if not whole:
            return list(items)
        return in_blocks(self.setting.plan, items)

    def _ahead(self, tasks: Sequence[Task]) -> None:
        look = getattr(self.setting.clients, "ahead", None)
        if look is not None:
            look([task.place for task in tasks])

    def _each(self, blocks: Sequence[Sequence[Task]]) -> bool:
        """Whether the updates themselves are exchanged, in the packed form that stages gave them, and not their sums.

        Where a block is one client, its sum has the same bits as its update; then it is a matter of bytes: what stages
        packed is smaller than a sum, and between two ranks nothing is saved by summing first.
        """
        plan, kind = self.setting.plan, blocks[0][0].kind
        if kind == "evaluate":
            return False
        if plan.reduce.needs == "each" or (kind == "train" and plan.stops_early()):
            return True
        alone = len(blocks) <= self.ranks.world and all(len(block) == 1 for block in blocks)
        packed = any(stage.decodes == "each" for stage in plan.stages)
        return alone and (packed or self.ranks.world == 2)

    # ------------------------------------------------------------ all ranks

    def _exchanged(
        self, blocks: Sequence[Sequence[Task]], ends: Sequence[int], mine: Sequence[Any], pace: float
    ) -> Iterator[Answer | Folded | Failure]:
        """What all ranks have, in the cohort's order."""
        ranks, plan, kind = self.ranks, self.setting.plan, blocks[0][0].kind
        answers = [item for item in mine if isinstance(item, Answer)]
        folded = sorted((item for item in mine if isinstance(item, Folded)), key=_place)
        refused: list[Failure] = []
        total = plan.reduce.zero()
        if kind != "evaluate" and not self._each(blocks):

            def add(before: Any) -> Any:
                nonlocal folded
                total, folded, lost = _summed(plan.reduce, before, folded)
                refused.extend(lost)
                return total

            total = ranks.relay(plan.reduce.zero(), add, f"adding up {kind} round {blocks[0][0].round}")
        failures = [*(item for item in mine if isinstance(item, Failure)), *refused]
        reports = list(chain.from_iterable(item.reports for item in folded))
        own = meta.pack(reports, answers, failures, [*self._said], pace)
        self._said.clear()
        told = ranks.gather(own, f"exchanging what came of {kind} round {blocks[0][0].round}")
        tasks = {task.index: task for task in chain.from_iterable(blocks)}
        found = [meta.unpack(one, tasks) for one in told]
        self._hear(told, kind)
        memories = self.homes.told(found, [*reports, *answers], kind)
        yield from _merged(found, total, memories)

    def _hear(self, told: Sequence[Any], kind: str) -> None:
        """Other ranks' notices, and their pace."""
        for rank, one in enumerate(told):
            if rank and self.ranks.rank == 0:
                for text in one["said"]:
                    self.setting.notify(f"rank {rank}: {text}")
        paces = [float(one["pace"]) for one in told]
        if kind != "train" or not all(paces) or self.homes.anything():
            return  # where clients remember, shares stay as they are: their memories would move with every breath
        fresh = paces
        if self._measured:  # one round says little: what else a machine does shows in it
            fresh = [a + NEWEST * (b - a) for a, b in zip(self._measured, paces, strict=True)]
        self._measured = fresh
        off = [a / b for a, b in zip(fresh, self._seconds, strict=True)]
        if max(off) / min(off) > 1 + STEADY or self._seconds == [1.0] * self.ranks.world:
            self._seconds = [float(f"{pace:.3g}") for pace in fresh]
            self._choose()

    def _say_narrow(self, blocks: int) -> None:
        if blocks < self.ranks.world and not self._narrow_said:
            self._narrow_said = True
            self._inner_setting.notify(
                f"a round is {blocks} block{'s' * (blocks > 1)} of clients, so of {self.ranks.world} ranks no more than"
                " that have work: Plan(block=…) cuts smaller blocks"
            ) if self.ranks.rank == 0 else None

    def _choose(self) -> None:
        """What is recorded: the inner engine's choices, and ours."""
        self.choices.update(self.inner.choices)
        self.choices |= {
            "ranks": self.ranks.world,
            "backend": self.ranks.backend,
            "inner": self._engine.part_name(),
            "seconds": list(self._seconds),
        }


def _place(item: Folded) -> tuple[int, int]:
    return item.block, min(report.index for report in item.reports)


def _summed(reduce: Any, before: Any, folded: Sequence[Folded]) -> tuple[Any, list[Folded], list[Failure]]:
    """``before`` with these sums added, block by block; those that fitted, and the clients of those that did not."""
    kept: list[Folded] = []
    failures: list[Failure] = []
    for block, items in groupby(folded, key=lambda item: item.block):
        own = reduce.zero()
        for item in items:
            try:
                own = reduce.merge(own, item.accumulator)
            except UpdateError as error:
                failures += [Failure(r.client, r.index, block, f"UpdateError: {error}") for r in item.reports]
            else:
                kept.append(item)
        try:
            before = reduce.merge(before, own)
        except UpdateError as error:
            lost = [item for item in kept if item.block == block]
            kept = [item for item in kept if item.block != block]
            failures += [Failure(r.client, r.index, block, f"UpdateError: {error}") for i in lost for r in i.reports]
    return before, kept, failures


def _pairs(ends: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _merged(found: Sequence[meta.Told], total: Any, memories: Mapping[int, Any]) -> Iterator[Answer | Folded | Failure]:
    """One sum with everyone's reports, or every answer and failure in the cohort's order."""
    items: list[Any] = []
    reports: list[Report] = []
    for one in found:
        items += [replace(answer, memory=memories.get(answer.task.index)) for answer in one.answers]
        items += one.failures
        reports += [replace(report, memory=memories.get(report.index)) for report in one.reports]
    items.sort(key=lambda item: item.index if isinstance(item, Failure) else item.task.index)
    yield from items
    if reports:
        yield Folded(0, total, sorted(reports, key=lambda report: report.index))
