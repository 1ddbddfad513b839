"""Chain: plain descent of K clients through one layer after another, a whole stretch of steps in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from insitu.learners.torch.chain.head import head_of
from insitu.learners.torch.chain.links import SQUASHES, Linear, Link, Memory, Reshape, Squash
from insitu.learners.torch.chain.pictures import Conv, MaxPool
from insitu.learners.torch.chain.replay import Replays, can_replay
from insitu.learners.torch.losses import Loss


class Chain:
    """The steps of a stretch; see :meth:`insitu.core.protocols.StackedGradient.descend_all`."""

    def __init__(
        self, links: Sequence[Link], outputs: tuple[int, ...], loss: Loss, metrics: Mapping[str, Loss]
    ) -> None:
        self._links, self._outputs = links, outputs
        self._loss, self._metrics = loss, metrics
        self._memory, self._replays = Memory(), Replays()

    def replays(self, device: torch.device) -> bool:
        """Whether stretches that come again are replayed there: the more alike they are, the better."""
        return can_replay(device)

    def said(self) -> list[str]:
        """What is to be told of replays and was not told yet."""
        return self._replays.said()

    @torch.no_grad()
    def descend(
        self, parameters: Mapping[str, Tensor], batch: Mapping[str, Any], counts: Sequence[int], lr: float
    ) -> dict[str, Tensor]:
        """w ← w − lr·g in place, step after step; ``parameters`` [K, …], batch columns [Σ counts, B, …].

        Lanes at work in step t are the first ``counts[t]``. Returns the metric sums of each client-step [Σ counts],
        which hold until the next stretch.
        """
        if can_replay(batch["x"].device):
            told = self._replays.run(self._steps, parameters, batch, counts, lr)
            if told is not None:
                return told
        return self._steps(parameters, batch, counts, lr, self._memory)

    def _steps(
        self, parameters: Mapping[str, Tensor], batch: Mapping[str, Any], counts: Sequence[int], lr: float,
        memory: Memory,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The stretch itself. Nothing in it looks at numbers, so that it can be recorded."""
        x, y, weight = batch["x"], batch["y"], batch["weight"]
        self._hold(parameters, x, counts[0], memory)
        outputs = memory.take("outputs", (*x.shape[:2], *self._outputs), x)
        head = head_of(self._loss, outputs, y)
        head.begin(outputs, batch, counts, memory)
        last, n = self._links[-1], 0
        for t, (now, out) in enumerate(zip(x.split(counts), outputs.split(counts), strict=True)):
            if len(now) != n:
                n = len(now)
                for link in self._links:
                    link.narrow(n)
            if isinstance(last, Linear):
                last.out = out
            for link in self._links:
                now = link.forward(now)
            if now is not out:
                out.copy_(now)
            g: Tensor | None = head.gradient(t, out)
            for link in reversed(self._links):
                if g is None:
                    break
                g = link.backward(g, lr)
        return self._sums(outputs, y, weight, head.losses())

    def _hold(self, parameters: Mapping[str, Tensor], x: Tensor, lanes: int, memory: Memory) -> None:
        some = x[:lanes]
        for link in self._links:
            some = link.hold(parameters, some, memory)

    def _sums(self, outputs: Tensor, y: Tensor, weight: Tensor, losses: Tensor) -> dict[str, Tensor]:
        sums = {"examples": weight.sum(1), "loss": (losses * weight).sum(1)}
        for name, metric in self._metrics.items():
            values = metric(outputs.flatten(0, 1), y.flatten(0, 1)).view(weight.shape)
            sums[name] = (values * weight).sum(1)
        return sums


def chained(
    module: nn.Module, trained: Sequence[str], example: Tensor, loss: Loss, metrics: Mapping[str, Loss]
) -> Chain | None:
    """The module as a chain for examples like this one [B, …]; None where it is something else.

    Half precision is left to kernels that sum in float32 within.
    """
    flat = list(_flat(module, ""))
    whole = {name for name, _ in module.named_parameters()} == set(trained)
    if not whole or example.dtype not in (torch.float32, torch.float64):
        return None
    links: list[Link] = []
    shape = tuple(example.shape[1:])
    try:
        for place, (prefix, layer) in enumerate(flat):
            make = MAKERS.get(type(layer))
            if make is None:
                return None
            link = make(place, layer, prefix, links[-1] if links else None)
            shape = link.shape(shape)
            link.deep = any(before.names for before in links)
            links.append(link)
    except ValueError:
        return None
    return Chain(links, shape, loss, metrics) if any(link.names for link in links) else None


def _flat(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested ``nn.Sequential``, in their order, with their parameters' prefixes."""
    if type(module) is nn.Sequential:
        for name, child in module.named_children():
            yield from _flat(child, f"{prefix}{name}.")
    else:
        yield prefix, module


def _squash(place: int, layer: nn.Module, prefix: str, before: Link | None) -> Link:
    onto, slope = SQUASHES[type(layer)]
    return Squash(place, onto, slope, before is not None and before.owns_output)


MAKERS: dict[type[nn.Module], Callable[[int, Any, str, Link | None], Link]] = {
    nn.Linear: lambda place, layer, prefix, before: Linear(place, layer, prefix),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), lambda place, layer, prefix, before: Conv(place, layer, prefix)),
    nn.MaxPool2d: lambda place, layer, prefix, before: MaxPool(place, layer),
    **dict.fromkeys(SQUASHES, _squash),
    **dict.fromkeys(
        (nn.Flatten, nn.Unflatten, nn.Identity), lambda place, layer, prefix, before: Reshape(place, layer)
    ),
}
