"""Debug: inline, but the first failure stops the run and says which client, which stage and what went in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from insitu.core import arrays, tree
from insitu.core.descent import Descent
from insitu.core.errors import ClientError
from insitu.core.protocols import Engine, FitLearner, Setting
from insitu.core.types import Answer, Client, Failure, Folded, Task
from insitu.engines.inline import one_thread
from insitu.rounds.client import answer, check_update


@dataclass(frozen=True)
class Debug(Engine):
    """Runs any plan; raises ClientError at the first failure of a client."""

    def refuses(self, plan: Any) -> str | None:
        return None

    def open(self, setting: Setting) -> DebugSession:
        return DebugSession(setting)


class DebugSession:
    """Works tasks off in their order, remembering what it is doing."""

    seats = 1

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._started: deque[Task] = deque()
        self.choices: dict[str, Any] = {}
        self._doing = ""
        self._inputs: Any = {}

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        for task in work:
            yield self._one(task)

    def start(self, task: Task) -> None:
        """Its turn comes after those that were started before."""
        self._started.append(task)

    def arrived(self) -> Answer | Failure:
        """Works the oldest off."""
        with one_thread():
            return self._one(self._started.popleft())

    def close(self) -> None:
        """Nothing was started."""

    def _one(self, task: Task) -> Answer:
        self._doing, self._inputs = "loading its data", {}
        try:
            return self._work(task, self.setting.clients.at(task.place))
        except Exception as error:
            raise ClientError(
                f"client {task.client!r}, round {task.round}, {self._doing}: {type(error).__name__}: {error}\n"
                f"inputs: {describe(self._inputs)}"
            ) from error

    def _work(self, task: Task, client: Client) -> Answer:
        plan, memory = self.setting.plan, self.setting.memories.get(task.client)
        own = (memory or {}).get("algorithm")
        if isinstance(plan.algorithm, Descent) and task.kind == "train" and not isinstance(plan.learner, FitLearner):
            update, own = self._descend(plan, task, client, own)
        else:
            self._at(f"{plan.algorithm.part_name()}.local ({task.kind})", _columns(client))
            update, own = plan.algorithm.local(task, client, plan.learner, own)
        self._at("checking its update", update.value)
        if task.kind == "train":
            check_update(task.client, update)
        self._at(f"stages {[stage.part_name() for stage in plan.stages]}", update.value)
        return answer(plan, task, update, own, memory)

    def _descend(self, plan: Any, task: Task, client: Client, own: Any) -> Any:
        algorithm, learner = plan.algorithm, plan.learner
        self._at("opening its task", _columns(client))
        learner.check(client)
        job = algorithm.open(task, client, learner, own)
        carry = job.carry
        for step in range(len(job.batches)):
            self._at(f"step {step + 1} of {len(job.batches)}", {})
            batch = algorithm.batch(learner, job, job.batches[step])
            self._at(self._doing, {"x": batch["x"], "y": batch["y"]})
            carry = algorithm.step(learner, job.fixed, carry, batch)
            if (path := tree.not_finite({"params": carry["shared"]})) is not None:
                raise ValueError(f"{path} is NaN or Inf after this step")
        self._at("closing its task", {"end": carry["shared"]})
        return algorithm.close(learner, job, carry)

    def _at(self, doing: str, inputs: Any) -> None:
        self._doing, self._inputs = doing, inputs


def _columns(client: Client) -> dict[str, Any]:
    return {"x": client.data.x, "y": client.data.y}


def describe(inputs: Any) -> str:
    """Name, dtype, shape and range of every array."""
    lines = []
    for path, leaf in tree.leaves(inputs):
        if not arrays.is_array(leaf):
            lines.append(f"{path} = {leaf!r}")
            continue
        values = arrays.asnumpy(leaf)
        span = ""
        if values.size and np.issubdtype(values.dtype, np.number):
            span = f" from {values.min():.6g} to {values.max():.6g}"
        lines.append(f"{path} {values.dtype}{list(values.shape)}{span}")
    return "; ".join(lines) or "none"
