"""Spmd: the engine's description. Every rank opens it for the same run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from insitu.core import checks
from insitu.core.protocols import Engine, Setting
from insitu.engines.spmd.ranks import Ranks, join, local_rank
from insitu.engines.spmd.session import SpmdSession


@dataclass(frozen=True)
class Spmd(Engine):
    """Several processes, on one machine or many, that run the same rounds and share out the clients of each.

    Start every one of them with the same plan and clients: ``torchrun … -m insitu run FILE --engine spmd``, ``insitu
    launch``, or a script of your own that calls :func:`insitu.run`. Rank 0 keeps the store and has the observers.

    backend  "gloo" or "nccl"; None: NCCL where every local rank has a GPU of its own
    timeout  seconds without a sign of life after which a rank counts as dead, and that ranks wait for each other at the
             start
    lanes    clients at once on each rank, as in :class:`~insitu.engines.vectorized.Vectorized`
    compile  as there
    device   as there; None: the rank's own GPU, or the CPU
    hook     what DistributedDataParallel does to a gradient on its way (methods that take one averaged gradient a step):
             "fp16", "bf16" (on GPUs) or "powersgd" (rank 1; its error feedback starts anew on resuming); None: nothing

    The number of ranks changes nothing in the answer, not one bit, but where DistributedDataParallel sums (1e-6).
    """

    backend: Literal["gloo", "nccl"] | None = None
    timeout: float = 60.0
    lanes: int | None = None
    compile: bool | Literal["auto"] = "auto"
    device: str | None = None
    hook: Literal["fp16", "bf16", "powersgd"] | None = None

    def __post_init__(self) -> None:
        checks.one_of((None, "gloo", "nccl"), backend=self.backend)
        checks.positive(timeout=self.timeout)
        if self.lanes is not None:
            checks.count(lanes=self.lanes)
        checks.one_of((True, False, "auto"), compile=self.compile)
        checks.one_of((None, "fp16", "bf16", "powersgd"), hook=self.hook)

    @classmethod
    def part_name(cls) -> str:
        return "spmd"

    def refuses(self, plan: Any) -> str | None:
        if not dist.is_available():
            return "this torch was built without torch.distributed: install another, or use engine='processes'"
        if self.hook == "bf16" and not torch.cuda.is_available():
            return "hook='bf16' needs NCCL and a GPU a rank, and this process sees none: use 'fp16', or leave it out"
        if self.backend == "nccl" and not torch.cuda.is_available():
            return "backend='nccl' needs a GPU a rank, and this process sees none: leave backend out, or say 'gloo'"
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if self.backend == "nccl" and torch.cuda.device_count() < local:
            return (
                f"backend='nccl' needs a GPU a rank, and this machine has {torch.cuda.device_count()} for {local} ranks:"
                " start fewer, or say 'gloo'"
            )
        return None

    def ranks(self) -> Ranks:
        return join(self.backend, self.timeout)

    def open(self, setting: Setting) -> SpmdSession:
        device = self.device
        if device is None and torch.cuda.is_available():
            device = f"cuda:{local_rank() % torch.cuda.device_count()}"
        options = {"lanes": self.lanes, "compile": self.compile, "device": device or "cpu"}
        return SpmdSession(setting, self.ranks(), options, self.hook)
