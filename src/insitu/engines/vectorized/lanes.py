"""Lanes: the stacked states of a wave's clients, advanced step by step.

Shapes: K lanes, of which the first n are at work; every leaf of the carry has K in front. A client that has finished
leaves its lane, and the rest go on without it: no step computes what nobody needs. Only a compiled step, which knows
one shape, runs idle lanes along, on batches that weigh nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from insitu.core import spans, tree
from insitu.core.descent import Descent, Job
from insitu.core.errors import EngineError
from insitu.core.protocols import GradientLearner, Stackable, StackedGradient
from insitu.engines.vectorized import step as steps
from insitu.engines.vectorized import trial
from insitu.engines.vectorized.examples import Shelf
from insitu.engines.vectorized.wave import Turn, Wave


@dataclass(frozen=True)
class Finished:
    """Clients that have done all their steps: their jobs, their last carry [k, …], and the message, if it is one."""

    jobs: list[Job]
    end: dict[str, Any]
    message: Any

    def of_block(self, block: int, shelf: Shelf) -> Finished:
        """Those of one block. What is summed of them is copied to memory that the next block's takes."""
        places = [k for k, job in enumerate(self.jobs) if job.task.block == block]
        if len(places) == len(self.jobs):
            return self
        summed = {name: self.end[name] for name in ("shared", "sums")}
        index = torch.tensor(places, device=next(iter(summed["sums"].values())).device)
        return Finished([self.jobs[k] for k in places], _picked(summed, index, shelf, "block"), self.message)


class Lanes:
    """How this model's clients are advanced. ``kind`` is one of the three of :mod:`insitu.engines.vectorized.step`."""

    def __init__(self, algorithm: Descent, learner: GradientLearner, device: str, *, compiled: int | None) -> None:
        """``compiled``: the number of lanes that a compiled step always has; None: not compiled."""
        self.algorithm, self.learner = algorithm, learner
        self.device = torch.device(device)
        # Layers that mix examples take batches in their exact size and as many lanes as share it: each pair would be
        # compiled anew, and a client's bits would depend on how many share its size.
        self.compiled = None if learner.mixes else compiled
        self.kind = ""
        self._model: StackedGradient | None = None
        self._maps: dict[bool, steps.Step] = {}
        self._sent: tuple[Any, Any] | None = None

    def choose(self, kind: str, wave: Wave) -> str:
        """Settles the kind: the one given, or the fastest that proves right here. Returns why not a faster one.

        Raises where this wave's clients cannot be run side by side, or none of them can be run at all.
        """
        learner, reason = self.learner, ""
        if not learner.mixes:
            self._check_padding(wave)
        if kind in ("fused", "stacked"):
            found = learner.stacked() if isinstance(learner, Stackable) else "it cannot be stacked"
            self._model = None if isinstance(found, str) else found
            kind = "mapped" if self._model is None else kind
        elif not kind:
            kind, reason = self._tried(wave)
        self.kind = kind
        return reason

    def train(self, wave: Wave) -> Iterator[Finished]:
        """All steps of a wave. What is yielded is to be used before the next."""
        first = wave.jobs[0].fixed["message"]
        same = all(job.fixed["message"] is first for job in wave.jobs)
        with spans.span("train", "fill lanes"):
            fixed = {
                "message": self._message(first)
                if same
                else wave.stacked([job.fixed["message"] for job in wave.jobs], "messages"),
                "memory": None
                if wave.jobs[0].fixed["memory"] is None
                else wave.stacked([job.fixed["memory"] for job in wave.jobs], "memories"),
                "frozen": self._here(wave.jobs[0].fixed["frozen"]),
            }
            carry = wave.stacked([job.carry for job in wave.jobs], "carry")
        told = fixed["message"] if same else None
        model = self._model if self.kind == "fused" and same else None
        steady = model is not None and model.steady(wave.example())
        self._count(wave, steady)
        if model is not None:
            # The rate is read where the message came from: a GPU would have to be waited for.
            together = steps.fused(model, float(first["lr"]), steady=steady)
            yield Finished(wave.jobs, self._in_place(together, carry, fixed, wave, steady), told)
        else:
            yield from self._in_turn(self._step(fixed, same), carry, fixed, wave, told)

    def said(self) -> list[str]:
        """What users should know of how the lanes are advanced, and were not told yet."""
        return [] if self._model is None else self._model.said()

    def rehearsed(self, wave: Wave, n: int) -> tuple[Callable[[], Any], int]:
        """Some steps of ``n`` clients like the wave's first, to be timed, and how many they are.

        What comes of them is thrown away.
        """
        job = wave.jobs[0]
        memory = job.fixed["memory"]
        many = 1 if self.kind != "fused" else wave.steps_in_a_stretch(n)
        first = next(wave.turns()).batch
        batch = {
            name: _times(column, n if name == "seed" or self.kind != "fused" else many * n)
            for name, column in first.items()
        }
        carry = _repeated(self._here(job.carry), n)
        fixed = {
            "message": self._here(job.fixed["message"]),
            "memory": None if memory is None else _repeated(self._here(memory), n),
            "frozen": self._here(job.fixed["frozen"]),
        }
        lr = float(fixed["message"]["lr"])
        fused = steps.fused(self._model, lr) if self.kind == "fused" and self._model else None
        step = None if fused else self._step(fixed, same=True)

        def once() -> None:
            if fused:
                fused(carry, fixed, batch, [n] * many)
            elif step:
                step(carry, fixed, batch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return once, many

    def _in_place(self, steps: steps.Steps, carry: Any, fixed: Any, wave: Wave, steady: bool) -> Any:
        """Fused steps change the carry itself: all ends stand in it when the longest client has finished.

        ``steady``: who has finished stays in its lane, and steps of no weight change no bit of it.
        """
        for stretch in wave.stretches(len(wave.jobs) if steady else None):
            with spans.span("train", "steps"):
                steps(carry, fixed, stretch.batch, stretch.counts)
        return carry

    def _in_turn(self, step: steps.Step, carry: Any, fixed: Any, wave: Wave, told: Any) -> Iterator[Finished]:
        """Steps that make a new carry: clients leave as they finish, so that old ones need not be kept."""
        pad, n = self.compiled, len(wave.jobs)
        if pad is not None:
            carry, fixed = _padded(carry, pad), {**fixed, "memory": _padded(fixed["memory"], pad)}
            if told is None:
                fixed["message"] = _padded(fixed["message"], pad)
        counts = [*wave.counts().tolist(), 0]
        for t, turn in enumerate(wave.turns(pad)):
            with spans.span("train", "step"):
                carry = self._advanced(step, carry, fixed, turn)
            if counts[t + 1] < n:
                left, n = n, counts[t + 1]
                yield Finished(wave.jobs[n:left], tree.map(lambda x, a=n, b=left: x[a:b], carry), told)
                if pad is None:
                    carry = _first(carry, n)
                    fixed = {**fixed, "memory": _first(fixed["memory"], n)}
                    if told is None:
                        fixed["message"] = _first(fixed["message"], n)

    def _advanced(self, step: steps.Step, carry: Any, fixed: Any, turn: Turn) -> Any:
        if not self.learner.mixes:
            return step(carry, fixed, turn.batch)
        for size in sorted(set(turn.sizes.tolist())):
            index = torch.from_numpy((turn.sizes == size).nonzero()[0]).to(self.device)
            some = {**fixed, "memory": _pick(fixed["memory"], index)}
            if self._by_lane(fixed):
                some["message"] = _pick(fixed["message"], index)
            batch = {k: v[index] if k == "seed" else _cut(v, index, size) for k, v in turn.batch.items()}
            new = step(_pick(carry, index), some, batch)
            carry = tree.map(lambda x, y, i=index: x.index_copy(0, i, y), carry, new)
        return carry

    def _count(self, wave: Wave, steady: bool) -> None:
        """For a profile: how well the wave's batches fill the lanes. ``steady``: all stay until the longest is done."""
        if (recorder := spans.recorder()) is not None:
            counts = wave.counts()
            busy = int(counts.sum())
            always = len(wave.jobs) if steady else self.compiled
            slots = (busy if always is None else len(counts) * always) * wave.size
            examples = sum(int(job.batches.ends[-1]) for job in wave.jobs)
            recorder.count(steps=len(counts), lanes=busy, slots=slots, examples=examples)

    def _message(self, message: Any) -> Any:
        """The message on the lanes' device. To a GPU it is sent once for all waves that share it."""
        if self.device.type == "cpu":
            return self._here(message)
        if self._sent is None or self._sent[0] is not message:
            self._sent = message, self._here(message)
        return self._sent[1]

    def _by_lane(self, fixed: Any) -> bool:
        return bool(tree.first_leaf(fixed["message"]["lr"]).dim())

    def _here(self, a: Any) -> Any:
        """The tree's tensors on the lanes' device."""
        return tree.map(lambda x: x.to(self.device), a)

    def _step(self, fixed: Any, same: bool) -> steps.Step:
        if self.kind in ("fused", "stacked") and self._model:
            return steps.stacked(self.algorithm, self._model, same_message=same)
        if same not in self._maps:
            compiled = self.compiled is not None
            self._maps[same] = steps.mapped(self.algorithm, self.learner, same_message=same, compiled=compiled)
        return self._maps[same]

    def _tried(self, wave: Wave) -> tuple[str, str]:
        """The fastest kind that this model can take, and why not a faster one."""
        learner = self.learner
        if not isinstance(learner, Stackable):
            return "mapped", f"{type(learner).__name__} has no stacked form"
        if type(self.algorithm).step is not Descent.step:
            return "mapped", f"{type(self.algorithm).__name__} takes steps of its own"
        model = learner.stacked()
        if isinstance(model, str):
            return "mapped", model
        job, lane, _ = self._sample(wave)
        batch = tree.map(lambda x: torch.stack([x, x.flip(0) if x.dim() else x + 1]), lane)
        # The second lane's model is another one, as it will be.
        carry = self._here(tree.map(lambda x: torch.stack([x, (x * 0.9).to(x.dtype)]), job.carry))
        reason = trial.doubt(model, learner, carry, {"frozen": self._here(job.fixed["frozen"])}, batch)
        if reason is not None:
            return "mapped", reason
        self._model = model
        return ("fused" if self.algorithm.plain() else "stacked"), ""

    def _check_padding(self, wave: Wave) -> None:
        """Raises EngineError where an example that weighs nothing changes a client's gradient."""
        job, lane, size = self._sample(wave)
        seed = lane.pop("seed")
        # Of a single example there is nothing to leave out: zeros stand in for another.
        rows = tree.map(lambda x: x[:size] if size > 1 else torch.cat([x[:1], torch.zeros_like(x[:1])]), lane)
        fixed = {"frozen": self._here(job.fixed["frozen"])}
        if trial.padding_shows(self.learner, self._here(job.carry), fixed, {**rows, "seed": seed}):
            raise EngineError(
                "its forward pass or its loss mixes the examples of a batch, or counts them, so that no batch may be"
                " filled up to the size of others"
            )

    def _sample(self, wave: Wave) -> tuple[Job, dict[str, Any], int]:
        """A client whose own gradient can be had, its first batch, and how many examples are in it.

        Raises what its gradient raises, or EngineError, where there is no such client.
        """
        turn = next(wave.turns())
        trouble: Exception = EngineError("no client's first gradient is finite")
        for k in sorted(range(turn.lanes), key=lambda k: -int(turn.sizes[k])):
            job = wave.jobs[k]
            lane = tree.map(lambda x, k=k: x[k], turn.batch)
            carry, fixed = self._here(job.carry), {"frozen": self._here(job.fixed["frozen"])}
            try:
                grads, _, _ = self.learner.gradient(steps.variables(carry, fixed), lane, carry["steps"])
            except Exception as error:
                trouble = error
                continue
            if tree.not_finite(grads) is None:
                return job, lane, int(turn.sizes[k])
        raise trouble


def _times(column: Any, n: int) -> Any:
    return tree.map(lambda x: x[:1].expand(n, *x.shape[1:]).contiguous(), column)


def _repeated(a: Any, n: int) -> Any:
    return tree.map(lambda x: x.expand(n, *x.shape).clone(), a)


def _first(stack: Any, lanes: int) -> Any:
    return None if stack is None else tree.map(lambda x: x[:lanes], stack)


def _pick(stack: Any, index: Any) -> Any:
    return None if stack is None else tree.map(lambda x: x[index], stack)


def _picked(stack: Any, index: torch.Tensor, shelf: Shelf, name: str) -> Any:
    if tree.is_branch(stack):
        return {key: _picked(part, index, shelf, f"{name}/{key}") for key, part in stack.items()}
    held = shelf.take(name, (len(index), *stack.shape[1:]), stack, stack.device)
    return torch.index_select(stack, 0, index, out=held)


def _cut(column: Any, index: Any, size: int) -> Any:
    return tree.map(lambda x: x[index, :size], column)


def _padded(stack: Any, lanes: int) -> Any:
    """The stack with lanes of zeros up to so many."""
    if stack is None:
        return None
    return tree.map(lambda x: torch.cat([x, x.new_zeros(lanes - len(x), *x.shape[1:])]) if len(x) < lanes else x, stack)
