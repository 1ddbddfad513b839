"""Stacked: a learner's gradient for K clients at once, and the whole step where it is plain descent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from insitu.core import tree
from insitu.core.types import Variables
from insitu.learners.torch.chain import Chain, chained
from insitu.learners.torch.dropout import Masks, keep_by_lane
from insitu.learners.torch.losses import Loss, cross_entropy, cross_entropy_gradient
from insitu.learners.torch.stacked.context import Lanes
from insitu.learners.torch.stacked.layers import Conv, Embedding, GroupNorm, Layer, LayerNorm, Linear
from insitu.learners.torch.stacked.recurrent import Gru, Lstm, Plain

LAYERS: dict[type[nn.Module], Callable[..., Layer]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv,
    nn.Conv2d: Conv,
    nn.Conv3d: Conv,
    nn.Embedding: Embedding,
    nn.LayerNorm: LayerNorm,
    nn.GroupNorm: GroupNorm,
    nn.LSTM: Lstm,
    nn.GRU: Gru,
    nn.RNN: Plain,
}
"""What each layer's stacked form is. A model with parameters anywhere else has none."""


class _Known(Function):
    """A loss whose gradient is known already; its value is not needed.

    ``backward(output, gradient)`` does the same, but imports a computer algebra system first: half a second.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.gradient, None


class Stacked:
    """The gradient of K lanes; see :class:`insitu.core.protocols.StackedGradient`."""

    def __init__(self, module: nn.Module, trained: tuple[str, ...], loss: Loss, metrics: Mapping[str, Loss]) -> None:
        self.lanes = Lanes()
        self._plain = module
        self._chains: dict[Any, Chain | None] = {}
        self.module = copy.deepcopy(module).train()
        self._loss, self._metrics = loss, metrics
        self._layers: list[Layer] = []
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        self.module = self._swapped(self.module, "", set(trained)).requires_grad_(False)  # of what is frozen
        self._frozen: Any = None
        self.draws = True
        self._counted = self._loose = False

    def gradient(self, variables: Any, batch: Mapping[str, Any], step: Tensor) -> tuple[Any, Any, Any]:
        """As a learner's ``gradient``, with K in front of every shape; what is frozen is not stacked."""
        shared, personal = variables.shared, variables.personal.get("params", {})
        leaves = [x.detach().requires_grad_() for x in (*shared.values(), *personal.values())]
        self._hold(dict(zip((*shared, *personal), leaves, strict=True)), variables, None)
        mean, sums = self._forward(batch, step)
        grads = torch.autograd.grad(mean, leaves, allow_unused=True)
        full = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
        own = full[len(shared) :]
        both = {"shared": dict(zip(shared, full, strict=False)), "personal": dict(zip(personal, own, strict=True))}
        return both, {"buffers": {}, "personal": {}}, sums

    def descend(self, variables: Any, batch: Mapping[str, Any], step: Tensor, lr: float) -> dict[str, Tensor]:
        """w ← w − lr·g, in place, for every trained parameter; returns the metric sums [K]."""
        held = {**variables.shared, **variables.personal.get("params", {})}
        if not self._counted:
            with torch.no_grad():
                self._hold(held, variables, None)
                self._forward(batch, step)
        self._hold(held, variables, lr)
        mean, sums = self._forward(batch, step)
        mean.backward()
        return sums

    def descend_all(
        self, variables: Any, batch: Mapping[str, Any], counts: Sequence[int], step: Tensor, lr: float
    ) -> dict[str, Tensor]:
        """:meth:`descend` for a stretch of steps; a chain of layers takes it in one go."""
        chain = self._chain_for(batch["x"])
        if chain is not None:
            held = {**variables.shared, **variables.personal.get("params", {})}
            for n, times in _runs(counts):
                step[:n] += times
            return chain.descend(held, batch, counts, lr)
        told: list[dict[str, Tensor]] = []
        at = 0
        for n in counts:
            some = tree.map(lambda x, n=n: x[:n], {"s": variables.shared, "p": variables.personal, "step": step})
            now = {k: v[:n] if k == "seed" else _rows(v, at, n) for k, v in batch.items()}
            mine = Variables(some["s"], variables.buffers, some["p"], variables.frozen)
            told.append(self.descend(mine, now, some["step"], lr))
            some["step"].add_(1)
            at += n
        return {name: torch.cat([sums[name] for sums in told]) for name in told[0]}

    def steady(self, x: Any) -> bool:
        """See :class:`insitu.core.protocols.StackedGradient`."""
        chain = self._chain_for(x)
        return chain is not None and chain.replays(x.device)

    def said(self) -> list[str]:
        """See :class:`insitu.core.protocols.StackedGradient`."""
        return [text for chain in self._chains.values() if chain is not None for text in chain.said()]

    def _chain_for(self, x: Any) -> Chain | None:
        if not isinstance(x, Tensor):
            return None
        form = (x.shape[2:], x.dtype)
        if form not in self._chains:
            self._chains[form] = chained(self._plain, tuple(self._places), x[0], self._loss, self._metrics)
        return self._chains[form]

    def _hold(self, tensors: Mapping[str, Tensor], variables: Any, lr: float | None) -> None:
        self.lanes.lr = lr
        for name, tensor in tensors.items():
            place, attribute = self._places[name]
            place[attribute] = tensor
        if variables.frozen is not self._frozen:
            self.module.to(next(iter(tensors.values())).device)
            state = dict((*self.module.named_parameters(), *self.module.named_buffers()))
            with torch.no_grad():
                for name, tensor in variables.frozen.items():
                    state[name].copy_(tensor)
            self._frozen = variables.frozen

    def _forward(self, batch: Mapping[str, Any], step: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What is to be differentiated, and the metric sums."""
        weight = batch["weight"]
        self.lanes.count = len(weight)
        x, y = tree.map(lambda c: c.flatten(0, 1), batch["x"]), batch["y"].flatten(0, 1)
        try:
            output = self._output(x, batch["seed"], step)
        except RuntimeError as error:
            if self._loose or "view size is not compatible" not in str(error):
                raise
            self._loose = True
            output = self._output(x, batch["seed"], step)
        if self.lanes.lr is None:
            # A first pass without steps shows which layers are used more than once.
            self._counted = True
            for layer in self._layers:
                layer.again = layer.again or layer.calls > 1
        elif any(layer.calls > 1 and not layer.again for layer in self._layers):
            raise RuntimeError("a layer is used more often than in the first pass: its steps cannot be fused")
        return self._sums(output, y, batch)

    def _output(self, x: Any, seed: Tensor, step: Tensor) -> Any:
        for layer in self._layers:
            layer.begin()
        with _Views() if self._loose else nullcontext():
            if not self.draws:
                return self.module(x)
            with _LaneMasks(seed, step, self.lanes.count) as masks:
                output = self.module(x)
            self.draws = masks.drew
            return output

    def _sums(self, output: Any, y: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch["weight"]
        if self._loss is cross_entropy and isinstance(output, Tensor) and output.dim() == 2 and y.dim() == 1:
            losses, gradient = cross_entropy_gradient(output.detach(), y, batch["share"].flatten())
            losses, mean = losses.view(weight.shape), _Known.apply(output, gradient)
        else:
            losses = self._loss(output, y).view(weight.shape)
            mean = (losses * batch["share"]).sum()
        sums = {"examples": weight.sum(1), "loss": (losses.detach() * weight).sum(1)}
        for name, metric in self._metrics.items():
            with torch.no_grad():
                sums[name] = (metric(output, y).view(weight.shape) * weight).sum(1)
        return mean, sums

    def _swapped(self, module: nn.Module, prefix: str, trained: set[str]) -> nn.Module:
        """The module with stacked layers where it has trained parameters. Raises ValueError where there is no such."""
        names = {f"{prefix}{name}" for name, _ in module.named_parameters()}
        if not names & trained:
            return module
        make = LAYERS.get(type(module))
        if make is not None:
            if not names <= trained:
                raise ValueError(f"{prefix[:-1] or 'the module'} is frozen in part")
            return self._placed(make(_checked(module, prefix), self.lanes), prefix)
        if module._parameters:
            raise ValueError(f"{type(module).__name__} has parameters of its own ({', '.join(module._parameters)})")
        for name, child in module.named_children():
            setattr(module, name, self._swapped(child, f"{prefix}{name}.", trained))
        return module

    def _placed(self, layer: Layer, prefix: str) -> Layer:
        self._layers.append(layer)
        for name in layer.names:
            self._places[f"{prefix}{name}"] = (layer.__dict__, name)
        return layer


def _runs(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Equal neighbours, and how many they are."""
    return ((n, len(list(same))) for n, same in groupby(counts))


def _rows(column: Any, at: int, n: int) -> Any:
    return tree.map(lambda x: x[at : at + n], column)


def stacked(module: nn.Module, trained: tuple[str, ...], loss: Loss, metrics: Mapping[str, Loss]) -> Stacked | str:
    """The module's stacked form, or the reason why it has none."""
    named = len(list(module.named_parameters())), len(list(module.named_parameters(remove_duplicate=False)))
    if named[0] != named[1]:
        return "two layers share a parameter"
    if hooked := next((name for name, m in module.named_modules() if _hooked(m)), None):
        return f"{hooked or 'the module'} has hooks"
    try:
        return Stacked(module, trained, loss, metrics)
    except ValueError as error:
        return str(error)


def _hooked(module: nn.Module) -> bool:
    return any(
        getattr(module, name)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def _checked(module: Any, prefix: str) -> nn.Module:
    """Raises ValueError for settings that the stacked form does not know."""
    name = prefix[:-1] or "the module"
    if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq or module.sparse):
        raise ValueError(f"{name} renormalises, scales or thins its gradients")
    if isinstance(module, nn.LSTM) and module.proj_size:
        raise ValueError(f"{name} projects its states")
    if isinstance(module, nn.RNNBase) and module.dropout and module.num_layers > 1 and not module.batch_first:
        raise ValueError(f"{name} drops out with time in front: batch_first=True")
    return module  # type: ignore[no-any-return]


class _Views(TorchFunctionMode):
    """Copies what cannot be viewed: convolutions leave channels last, which a forward with ``view`` does not expect."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.view:
            return func(*args, **(kwargs or {}))
        try:
            return args[0].view(*args[1:], **(kwargs or {}))
        except RuntimeError:
            return args[0].contiguous().view(*args[1:], **(kwargs or {}))


class _LaneMasks(Masks):
    """Dropout masks of merged activations: each lane's as if it were alone."""

    def __init__(self, seed: Tensor, step: Tensor, lanes: int) -> None:
        super().__init__(seed, step)
        self.lanes = lanes

    def mask(self, shape: torch.Size, p: float) -> Tensor:
        """The next mask, for a tensor [K·B, …]."""
        self.calls += 1
        if shape[0] % self.lanes:
            raise RuntimeError(f"dropout of a tensor {list(shape)}, whose first dimension is not that of the batch")
        own = torch.Size((shape[0] // self.lanes, *shape[1:]))
        return keep_by_lane(own, p, self.seed, self.step, self.calls).flatten(0, 1)
