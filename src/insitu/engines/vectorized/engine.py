"""Vectorized: the engine's description, and what it chooses when it is opened."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any, Literal

import torch

from insitu.core import arrays, checks, tree
from insitu.core.descent import Descent
from insitu.core.errors import EngineError
from insitu.core.protocols import Engine, GradientLearner, Setting, Stackable
from insitu.engines.vectorized.session import VectorizedSession

COMPILE_FROM = 20_000
"""Steps of all lanes together in a run from which ``compile="auto"`` compiles: a compiler takes half a minute."""

ONE_THREAD = 500_000
"""Parameters up to which one thread computes: several would wait for each other more than they help."""


@dataclass(frozen=True)
class Vectorized(Engine):
    """Stacks the parameters of several clients and advances all by one step with one call.

    lanes    clients at once; None: by the size of the model (16 small, 8 medium, 4 large; four times that on a GPU)
    compile  True, False, or "auto": compile long runs where a C++ compiler is there
    device   "cpu", "cuda", "cuda:1", "mps"; None: a GPU where there is one
    """

    lanes: int | None = None
    compile: bool | Literal["auto"] = "auto"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.lanes is not None:
            checks.count(lanes=self.lanes)
        checks.one_of((True, False, "auto"), compile=self.compile)
        if self.device is not None:
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise EngineError(f"device={self.device!r} is not a device: use 'cpu', 'cuda' or 'mps'") from error

    @classmethod
    def part_name(cls) -> str:
        return "vectorized"

    def refuses(self, plan: Any) -> str | None:
        name = type(plan.algorithm).__name__
        if not isinstance(plan.algorithm, Descent):
            return f"{name} is not gradient descent, which is what lanes advance: use engine='inline' or 'processes'"
        if not isinstance(plan.learner, GradientLearner):
            return f"{type(plan.learner).__name__} has no gradients to vectorise: use engine='inline' or 'processes'"
        start = plan.learner.init(0)
        if not arrays.is_torch(tree.first_leaf({"shared": start.shared, "personal": start.personal})):
            return (
                f"{type(plan.learner).__name__} computes with NumPy, lanes with torch: use TorchLearner,"
                " engine='inline' or 'processes'"
            )
        return None

    def open(self, setting: Setting) -> VectorizedSession:
        chosen = {**self._choose(setting), **setting.choices}
        return VectorizedSession(setting, chosen)

    def _choose(self, setting: Setting) -> dict[str, Any]:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.zeros(1, device=device)
        except (AssertionError, RuntimeError) as error:
            raise EngineError(f"device={device!r} cannot be used here ({error}): leave device out, or 'cpu'") from error
        start = setting.plan.learner.init(setting.seed)
        size = sum(x.numel() for x in tree.values(start.shared))
        lanes = self.lanes or (16 if size <= 50_000 else 8 if size <= 500_000 else 4) * (1 if device == "cpu" else 4)
        compiled = self._worth_compiling(setting, lanes) if self.compile == "auto" else self.compile
        if compiled and setting.plan.learner.mixes:
            setting.notify("layers that mix the examples of a batch (batch norm) are not compiled")
            compiled = False
        return {
            "lanes": lanes,
            "compile": compiled,
            "device": device,
            "threads": 1 if device == "cpu" and size <= ONE_THREAD else torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _worth_compiling(self, setting: Setting, lanes: int) -> bool:
        plan, clients = setting.plan, setting.clients
        if plan.learner.mixes or (shutil.which("g++") is None and shutil.which("clang++") is None):
            return False
        if isinstance(plan.learner, Stackable) and not isinstance(plan.learner.stacked(), str):
            return False  # stacked layers need no compiler to be fast
        cohort = plan.buffered.size if plan.buffered else len(plan.cohort.sample(len(clients), setting.seed, 1))
        examples = clients.size_at(0) or 100
        work = plan.algorithm.work()
        per_epoch = max(1, examples // (work.batch_size or examples))
        steps = work.steps or per_epoch * (work.epochs or 1)
        return setting.rounds * cohort * steps / lanes >= COMPILE_FROM
