"""Vectorized: the engine's description, and what it chooses when it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from insitu.core import arrays, checks, tree
from insitu.core.descent import Descent
from insitu.core.errors import EngineError
from insitu.core.protocols import Engine, GradientLearner, Setting
from insitu.engines.vectorized.choice import has_compiler
from insitu.engines.vectorized.session import VectorizedSession

ONE_THREAD = 500_000
"""Parameters up to which one thread computes: several would wait for each other more than they help."""


@dataclass(frozen=True)
class Vectorized(Engine):
    """Stacks the parameters of several clients and advances all by one step with one call.

    lanes    clients at once; None: measured with the first client, and remembered for this model and machine; short
             runs take what is usual for the size of the model
    compile  True, False, or "auto": where the model has no stacked form and compiling saves more than twice its cost
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
        measure = (
            self.lanes is None and self.compile == "auto" and "lanes" not in setting.choices and not _real(setting)
        )
        return VectorizedSession(setting, chosen, measure=measure)

    def _choose(self, setting: Setting) -> dict[str, Any]:
        """What is given, and what is usual until it is measured."""
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.zeros(1, device=device)
        except (AssertionError, RuntimeError) as error:
            raise EngineError(f"device={device!r} cannot be used here ({error}): leave device out, or 'cpu'") from error
        start = setting.plan.learner.init(setting.seed)
        size = sum(x.numel() for x in tree.values(start.shared))
        usual = (
            1
            if _real(setting)
            else (32 if size <= 50_000 else 8 if size <= 500_000 else 4) * (1 if device == "cpu" else 4)
        )
        return {
            "lanes": self.lanes or (1 if _real(setting) else usual),
            "compile": self.compile is True and self._can_compile(setting, device),
            "device": device,
            "threads": 1 if device == "cpu" and size <= ONE_THREAD else torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _can_compile(self, setting: Setting, device: str) -> bool:
        if setting.plan.learner.mixes:
            setting.notify("layers that mix the examples of a batch (batch norm) are not compiled")
            return False
        if not has_compiler(torch.device(device)):
            setting.notify("there is no C++ compiler on this machine, so steps are not compiled: install g++")
            return False
        return True


def _real(setting: Setting) -> bool:
    """Whether clients come one at a time, in real time. Then there is nothing to measure, and no worker's own figures
    decide what it computes."""
    buffered = setting.plan.buffered
    return buffered is not None and bool(buffered.real)
