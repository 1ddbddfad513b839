"""Lanes: K clients' states, stacked, and the step that advances all of them.

Shapes: K lanes, B examples a step. Every leaf of a carry has K in front; an idle lane keeps all its state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from insitu.core import tree
from insitu.core.descent import Descent, Job
from insitu.core.protocols import GradientLearner

Step = Callable[..., Any]


def stepper(algorithm: Descent, learner: GradientLearner, *, shared_message: bool, compiled: bool) -> Step:
    """The function (carry [K], fixed, batch [K, B], active [K]) → carry [K].

    ``shared_message``: all lanes have the same message, which is then not stacked.
    """

    def one(carry: Any, fixed: Any, batch: Any, active: Tensor) -> Any:
        new = algorithm.step(learner, fixed, carry, batch)
        return tree.map(lambda n, o: torch.where(active, n, o), new, carry)

    def many(carry: Any, fixed: Any, batch: Any, active: Tensor) -> Any:
        dims = {
            "message": None if shared_message else 0,
            "memory": None if fixed["memory"] is None else 0,
            "frozen": None,
        }
        return torch.func.vmap(one, in_dims=(0, dims, 0, 0))(carry, fixed, batch, active)

    return torch.compile(many, dynamic=False) if compiled else many


class Lanes:
    """The lanes of one block of clients."""

    def __init__(self, algorithm: Descent, learner: GradientLearner, lanes: int, device: str, compiled: bool) -> None:
        self.algorithm, self.learner = algorithm, learner
        self.count, self.device, self.compiled = lanes, torch.device(device), compiled
        self.jobs: list[Job | None] = [None] * lanes
        self.at = [0] * lanes
        self._columns: list[Any] = [None] * lanes
        self._carry: Any = None
        self._memory: Any = None
        self._message: Any = None
        self._shared_message: Any = None
        self._frozen: Any = None
        self._steps: dict[tuple[bool, bool], Step] = {}
        self.batch_size: int | None = 1

    def start_block(self, messages: Sequence[Any], batch_size: int | None) -> None:
        """Before a block's first client: one message for all is moved to the device once and not stacked."""
        first = messages[0]
        same = all(message is first for message in messages)
        self._shared_message = self.to_device(first) if same else None
        self._message = None
        self.batch_size = batch_size

    def to_device(self, a: Any) -> Any:
        """The tree's tensors on the lanes' device."""
        return tree.map(lambda x: x.to(self.device) if isinstance(x, Tensor) else x, a)

    def free(self) -> int | None:
        """A lane without a client, or None."""
        return next((k for k, job in enumerate(self.jobs) if job is None), None)

    def busy(self) -> list[int]:
        """The lanes with a client."""
        return [k for k, job in enumerate(self.jobs) if job is not None]

    def put(self, lane: int, job: Job, columns: Any) -> None:
        """A client takes a lane: its state is written over the last one's."""
        if self._carry is None:
            self._carry = tree.map(self._stacked, job.carry)
            self._frozen = self.to_device(job.fixed["frozen"])
        self._write(self._carry, lane, job.carry)
        if job.fixed["memory"] is not None:
            if self._memory is None:
                self._memory = tree.map(self._stacked, job.fixed["memory"])
            self._write(self._memory, lane, job.fixed["memory"])
        if self._shared_message is None:
            if self._message is None:
                self._message = tree.map(self._stacked, job.fixed["message"])
            self._write(self._message, lane, job.fixed["message"])
        self.jobs[lane], self.at[lane], self._columns[lane] = job, 0, self.to_device(columns)

    def step(self) -> list[int]:
        """Advances every busy lane by one batch; returns the lanes whose clients have finished."""
        busy = self.busy()
        sizes = {k: self._size(k) for k in busy}
        if self.batch_size is not None and set(sizes.values()) == {self.batch_size}:
            self._advance_all(busy)
        else:
            for size in sorted(set(sizes.values())):
                self._advance_some([k for k in busy if sizes[k] == size], size)
        for k in busy:
            self.at[k] += 1
        return [k for k in busy if self.at[k] == len(self._job(k).batches)]

    def take(self, lane: int) -> tuple[Job, Any]:
        """A finished client's job and its last carry (views of the lane: use them before the lane's next step)."""
        job = self._job(lane)
        self.jobs[lane] = None
        self._columns[lane] = None
        end = tree.map(lambda x: x[lane], self._carry)
        message = job.fixed["message"] if self._shared_message is None else self._shared_message
        fixed = {**job.fixed, "message": message, "memory": self.to_device(job.fixed["memory"] or {}) or None}
        return Job(job.task, job.client, job.batches, fixed, job.carry, job.dropout), end

    def drop_all(self) -> list[Job]:
        """Empties all lanes and returns the jobs that were in them."""
        jobs = [job for job in self.jobs if job is not None]
        self.jobs = [None] * self.count
        return jobs

    def _job(self, lane: int) -> Job:
        job = self.jobs[lane]
        assert job is not None
        return job

    def _index(self, lane: int) -> Any:
        return self._job(lane).batches[self.at[lane]]

    def _size(self, lane: int) -> int:
        """The examples that the lane's next batch is padded to: a matter of this client alone.

        Layers that mix examples see no padding. Where a batch is all of a client's data, it is padded to the next power
        of two, so that clients of about a size advance together.
        """
        examples = len(self._index(lane))
        if self.learner.mixes:
            return examples
        return self.batch_size or 1 << (examples - 1).bit_length()

    def _stacked(self, leaf: Tensor) -> Tensor:
        return torch.zeros((self.count, *leaf.shape), dtype=leaf.dtype, device=self.device)

    def _write(self, stack: Any, lane: int, values: Any) -> None:
        tree.map(lambda s, v: s[lane].copy_(v), stack, values)

    def _fixed(self, lanes: Tensor | None = None) -> dict[str, Any]:
        def pick(stack: Any) -> Any:
            return stack if lanes is None or stack is None else tree.map(lambda x: x[lanes], stack)

        shared = self._shared_message is not None
        message = self._shared_message if shared else pick(self._message)
        return {"message": message, "memory": pick(self._memory), "frozen": self._frozen}

    def _advance_all(self, busy: list[int]) -> None:
        active = torch.zeros(self.count, dtype=torch.bool)
        active[busy] = True
        assert self.batch_size is not None
        batch = self._batch(range(self.count), self.batch_size)
        self._carry = self._run(self._carry, self._fixed(), batch, active.to(self.device))

    def _advance_some(self, lanes: list[int], size: int) -> None:
        index = torch.tensor(lanes, device=self.device)
        carry = tree.map(lambda x: x[index], self._carry)
        active = torch.ones(len(lanes), dtype=torch.bool, device=self.device)
        new = self._run(carry, self._fixed(index), self._batch(lanes, size), active)
        tree.map(lambda stack, x: stack.index_copy_(0, index, x), self._carry, new)

    def _batch(self, lanes: Sequence[int], size: int) -> dict[str, Any]:
        """The next examples of these lanes, padded to ``size`` with zeros that weigh nothing."""
        dtype = tree.first_leaf({"s": self._carry["shared"], "p": self._carry["personal"]}).dtype
        weight = torch.zeros((len(lanes), size), dtype=dtype)
        seed = torch.zeros(len(lanes), dtype=torch.int64)
        sample = self._columns[self.busy()[0]]
        columns = tree.map(
            lambda c: torch.zeros((len(lanes), size, *c.shape[1:]), dtype=c.dtype, device=self.device), sample
        )
        for i, lane in enumerate(lanes):
            job = self.jobs[lane]
            if job is None:
                continue
            index = self._index(lane)
            rows = torch.from_numpy(index).to(self.device)
            tree.map(
                lambda out, c, i=i, rows=rows: out[i, : len(rows)].copy_(c.index_select(0, rows)),
                columns,
                self._columns[lane],
            )
            weight[i, : len(index)] = 1
            seed[i] = job.dropout
        return {**columns, "weight": weight.to(self.device), "seed": seed.to(self.device)}

    def _run(self, carry: Any, fixed: Any, batch: Any, active: Tensor) -> Any:
        shared = self._shared_message is not None
        # Layers that mix examples take batches in their exact size and as many lanes as share it: each pair would be
        # compiled anew, and a client's bits would depend on how many share its size.
        compiled = self.compiled and not self.learner.mixes
        if (shared, compiled) not in self._steps:
            self._steps[shared, compiled] = stepper(
                self.algorithm, self.learner, shared_message=shared, compiled=compiled
            )
        with warnings.catch_warnings():
            # Recurrent layers have no batching rule and fall back to a loop; the answer is right, and the speed known.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return self._steps[shared, compiled](carry, fixed, batch, active)
