"""Steps along one averaged gradient, by DistributedDataParallel, which sends while it still computes.

A batch is cut evenly among the ranks, whoever's clients its examples are. Each rank's loss is scaled so that the mean
over ranks, which is what DistributedDataParallel takes, is the mean over the batch's examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from insitu.core import tree
from insitu.core.batches import cut
from insitu.core.errors import EngineError
from insitu.core.protocols import Setting, Stepwise
from insitu.core.types import Data, Total
from insitu.engines.spmd.ranks import Ranks

RANK_OF_POWERSGD = 1
WARM = 2
"""Steps that PowerSGD sends whole gradients: torch asks for two at least with its error feedback."""


class Stepper:
    """This rank's model, and its part of every step of a run."""

    def __init__(self, setting: Setting, ranks: Ranks, trainable: Any, device: str, hook: str | None) -> None:
        self.setting, self.ranks, self.device = setting, ranks, torch.device(device)
        self._module = trainable.to(self.device)
        start = setting.plan.learner.init(setting.seed)
        self._module.fill(self._here({**start.frozen, **start.shared}))
        self._shared: dict[str, nn.Parameter] = self._module.shared()
        self._size = sum(p.nbytes for p in self._shared.values())
        self._model: Any = self._module
        self._hook, self._power = hook, None
        if ranks.world > 1:
            cuda = [self.device.index] if self.device.type == "cuda" else None
            # torch picks NCCL for what lies on a GPU, gloo for the rest.
            self._model = DistributedDataParallel(self._module, device_ids=cuda)
            self._register(hook)
        self._ends = np.cumsum([self._length(place) for place in range(len(setting.clients))])
        self._data: dict[int, Data] = {}

    def take(self, algorithm: Stepwise, state: Any, round: int, first: int) -> tuple[Any, dict[str, float], int]:
        """The state after the round's steps, this rank's metric sums, and the bytes of gradient that it told."""
        plan = self.setting.plan
        state, sums, told = self._here(state), [], 0
        for step in range(first, first + algorithm.steps_a_round()):
            examples = np.asarray(algorithm.examples(step, int(self._ends[-1]), self.setting.seed))
            self._check(len(examples), step, first)
            batch, weight = self._batch(cut(examples, self.ranks.rank, self.ranks.world))
            self._module.fill(state["shared"])
            for parameter in self._shared.values():
                parameter.grad = None
            before = 0 if self._power is None else self._power.total_numel_after_compression
            loss, own = self._model(batch["x"], batch["y"], self.ranks.world / len(examples), weight)
            loss.backward()
            told += self._told(before)
            sums.append(own)
            grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self._shared.items()}
            count = float(len(examples))
            total = Total({"shared": grads}, {"shared": count}, self.ranks.world, len(self.setting.clients))
            with torch.no_grad():
                state = plan.algorithm.tell(state, total, round)
        return self._home(state), self._added(sums), told

    # ------------------------------------------------------------ examples

    def _length(self, place: int) -> int:
        size = self.setting.clients.size_at(place)
        return len(self._client(place)) if size is None else size

    def _client(self, place: int) -> Data:
        client = self.setting.clients.at(place)
        self.setting.plan.learner.check(client)
        return client.data

    def _check(self, batch: int, step: int, first: int) -> None:
        """Raises EngineError where there are more ranks than examples; the last batch of an epoch may be short."""
        if step == first and batch < self.ranks.world and batch in (int(self._ends[-1]), *self._usual()):
            raise EngineError(
                f"{self.ranks.world} ranks share {batch} example{'s' * (batch > 1)} a step, so that some have none: start"
                f" {batch} or fewer, or give a larger batch_size"
            )

    def _usual(self) -> Sequence[int]:
        size = self.setting.plan.algorithm.work().batch_size
        return [] if size is None else [size]

    def _batch(self, examples: np.ndarray) -> tuple[dict[str, Any], Tensor]:
        """The columns of these examples, and their weights; where there are none, one that weighs nothing."""
        weight = 1.0 if len(examples) else 0.0
        examples = examples if len(examples) else np.array([0])
        owner = np.searchsorted(self._ends, examples, side="right")
        parts = []
        for place in np.unique(owner):
            if place not in self._data:
                self._data[place] = self._client(int(place))
            data = self._data[place]
            index = examples[owner == place] - (self._ends[place] - len(data))
            parts.append(self.setting.plan.learner.batch(data, index))
        batch = parts[0] if len(parts) == 1 else tree.map(lambda *columns: torch.cat(columns), *parts)
        kind = next(iter(self._shared.values())).dtype
        return self._here(batch), torch.full((len(examples),), weight, dtype=kind, device=self.device)

    # ------------------------------------------------------------ what travels

    def _register(self, hook: str | None) -> None:
        if hook == "powersgd":
            self._power = powerSGD_hook.PowerSGDState(
                None, matrix_approximation_rank=RANK_OF_POWERSGD, start_powerSGD_iter=WARM
            )
            self._model.register_comm_hook(self._power, powerSGD_hook.powerSGD_hook)
        elif hook is not None:
            name = {"fp16": "fp16_compress_hook", "bf16": "bf16_compress_hook"}[hook]
            self._model.register_comm_hook(None, getattr(default_hooks, name))

    def _told(self, before: int) -> int:
        """Bytes of this step's gradient as it was sent."""
        size = self._size
        if self._hook in ("fp16", "bf16"):
            size = 2 * sum(p.numel() for p in self._shared.values())
        elif self._power is not None and self._power.total_numel_after_compression > before:
            item = next(iter(self._shared.values())).element_size()
            size = (self._power.total_numel_after_compression - before) * item
        if self.ranks.world > 1:  # a ring's all-reduce, which is gloo's and NCCL's
            self.ranks.sent += math.ceil(size * 2 * (self.ranks.world - 1) / self.ranks.world)
        return size

    def _added(self, sums: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        return {name: float(torch.stack([one[name].double() for one in sums]).sum()) for name in sums[0]}

    def _here(self, a: Any) -> Any:
        return tree.map(lambda x: x.to(self.device) if isinstance(x, Tensor) else x, a)

    def _home(self, a: Any) -> Any:
        return tree.map(lambda x: x.cpu() if isinstance(x, Tensor) else x, a)
