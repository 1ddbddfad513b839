"""Recurrent layers with one set of weights a lane: the loop over time is ours, each turn one product for all lanes.

torch's own recurrent kernels know one set of weights, and a transform over them falls back to one lane after another.
Shapes: K lanes, T steps in time, B examples a lane, F features, H hidden; gates stand in torch's order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from insitu.learners.torch.stacked.layers import Layer


class _Lstm(Function):
    """One direction of one LSTM layer (Hochreiter and Schmidhuber 1997, with forget gates).

    gates [K, T, B, 4H] (input, forget, cell, output) the input's share with both biases; recurrent [K, 4H, H];
    first, cell [K, B, H] → outputs [K, T, B, H], last cell [K, B, H]
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, recurrent: Tensor, first: Tensor, cell: Tensor, lr: float | None, anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        k, steps, b, width = gates.shape
        h = width // 4
        gates = gates.clone()
        outputs = gates.new_empty(k, steps + 1, b, h)
        cells = torch.empty_like(outputs)
        outputs[:, 0], cells[:, 0] = first, cell
        squashed = gates.new_empty(k, steps, b, h)
        for t in range(steps):
            now = gates[:, t]
            now.baddbmm_(outputs[:, t], recurrent.mT)
            now[..., : 2 * h].sigmoid_()
            now[..., 2 * h : 3 * h].tanh_()
            now[..., 3 * h :].sigmoid_()
            i, f, g, o = now.chunk(4, -1)
            torch.mul(f, cells[:, t], out=cells[:, t + 1])
            cells[:, t + 1].addcmul_(i, g)
            torch.tanh(cells[:, t + 1], out=squashed[:, t])
            torch.mul(o, squashed[:, t], out=outputs[:, t + 1])
        ctx.save_for_backward(gates, recurrent, outputs, cells, squashed)
        ctx.lr = lr
        return outputs[:, 1:].clone(), cells[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gates, recurrent, outputs, cells, squashed = ctx.saved_tensors
        k, steps, b, width = gates.shape
        h = width // 4
        above = grads[0]
        # What each gate's gradient is multiplied by, for all times at once; the loop does only what depends on time.
        i, f, g, o = gates.chunk(4, -1)
        slopes = torch.empty_like(gates)
        for at, slope in enumerate((g * i * (1 - i), cells[:, :-1] * f * (1 - f), i * (1 - g * g))):
            slopes[..., at * h : (at + 1) * h] = slope
        slopes[..., 3 * h :] = squashed * o * (1 - o)
        through = o * (1 - squashed * squashed)
        down = torch.empty_like(gates)
        dh = torch.zeros_like(above[:, 0])
        dc = torch.zeros_like(dh) if grads[1] is None else grads[1].clone()
        for t in range(steps - 1, -1, -1):
            dh = dh.add_(above[:, t])
            dc.addcmul_(dh, through[:, t])
            now, slope = down[:, t], slopes[:, t]
            torch.mul(
                slope[..., : 3 * h].unflatten(-1, (3, h)), dc.unsqueeze(2), out=now[..., : 3 * h].unflatten(-1, (3, h))
            )
            torch.mul(slope[..., 3 * h :], dh, out=now[..., 3 * h :])
            dc.mul_(f[:, t])
            dh = torch.bmm(now, recurrent)
        flat, before = down.flatten(1, 2), outputs[:, :-1].reshape(k, steps * b, h)
        change = None
        if ctx.lr is not None:
            recurrent.baddbmm_(flat.mT, before, alpha=-ctx.lr)
        elif ctx.needs_input_grad[1]:
            change = torch.bmm(flat.mT, before)
        return down, change, dh, dc, None, None


class Recurrent(Layer, ABC):
    """What LSTM, GRU and plain recurrent layers have in common: layers, directions, layouts."""

    def __init__(self, original: Any, lanes: Any) -> None:
        super().__init__(original, lanes)
        self.layers, self.hidden, self.batch_first = original.num_layers, original.hidden_size, original.batch_first
        self.directions, self.drop = 2 if original.bidirectional else 1, original.dropout

    def forward(self, x: Tensor, start: Any = None) -> tuple[Tensor, Any]:
        """[K·B, T, F] (or [T, K·B, F]) → [K·B, T, directions · H] and the last states, as torch's layers do."""
        k, fused = self.lanes.count, self.fused()
        x = x if self.batch_first else x.transpose(0, 1)
        xs = x.reshape(k, -1, *x.shape[1:]).transpose(1, 2)
        states = self._start(xs, start)
        ends: list[Any] = []
        for layer in range(self.layers):
            outs = []
            for direction in range(self.directions):
                state = [s[layer * self.directions + direction] for s in states]
                out, end = self._sweep(
                    xs.flip(1) if direction else xs, state, self._weights(layer, direction, fused), fused
                )
                outs.append(out.flip(1) if direction else out)
                ends.append(end)
            xs = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
            if self.drop and self.training and layer + 1 < self.layers:
                merged = nn.functional.dropout(xs.transpose(1, 2).flatten(0, 1), self.drop)
                xs = merged.unflatten(0, (k, -1)).transpose(1, 2)
        y = xs.transpose(1, 2).flatten(0, 1)
        last = [torch.stack([end[i].flatten(0, 1) for end in ends]) for i in range(len(states))]
        return y if self.batch_first else y.transpose(0, 1), tuple(last) if len(last) > 1 else last[0]

    def _start(self, xs: Tensor, start: Any) -> list[Tensor]:
        k, count = self.lanes.count, 2 if isinstance(self, Lstm) else 1
        if start is None:
            return [xs.new_zeros(self.layers * self.directions, k, xs.shape[2], self.hidden)] * count
        given = start if count > 1 else (start,)
        return [s.unflatten(1, (k, -1)) for s in given]

    def _weights(self, layer: int, direction: int, fused: bool) -> list[Any]:
        """The input's and the recurrent weights, and both biases; fused, an LSTM's recurrent weight steps by itself."""
        end = f"_l{layer}" + ("_reverse" if direction else "")
        recurrent = f"weight_hh{end}"
        turn = self.__dict__[recurrent] if fused and isinstance(self, Lstm) else self.use(recurrent)
        return [self.use(f"weight_ih{end}"), turn, self.use(f"bias_ih{end}"), self.use(f"bias_hh{end}")]

    def _input(self, xs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The input's share of all gates at all times, [K, T, B, gates · H]."""
        flat = xs.reshape(xs.shape[0], -1, xs.shape[-1])
        out = torch.bmm(flat, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, weight.mT)
        return out.view(*xs.shape[:3], weight.shape[1])

    @abstractmethod
    def _sweep(self, xs: Tensor, state: list[Tensor], weights: list[Any], fused: bool) -> tuple[Tensor, list[Tensor]]:
        """One direction of one layer: xs [K, T, B, F], states [K, B, H] → outputs [K, T, B, H] and the last states."""


class Lstm(Recurrent):
    """``nn.LSTM``."""

    def _sweep(self, xs: Tensor, state: list[Tensor], weights: list[Any], fused: bool) -> tuple[Tensor, list[Tensor]]:
        lanes, (own, recurrent, bias, more) = self.lanes, weights
        both = None if bias is None else bias + more
        gates = self._input(xs, own, both)
        out, cell = _Lstm.apply(gates, recurrent, *state, lanes.lr if fused else None, lanes.anchor)
        return out, [out[:, -1], cell]


class Gru(Recurrent):
    """``nn.GRU`` (Cho et al. 2014, torch's variant: the reset gate acts after the recurrent product)."""

    def _sweep(self, xs: Tensor, state: list[Tensor], weights: list[Any], fused: bool) -> tuple[Tensor, list[Tensor]]:
        own, recurrent, bias, more = weights
        gates = self._input(xs, own, bias)
        turn, (h,), outs = recurrent.mT, state, []
        added = None if more is None else more.unsqueeze(1)
        for now in gates.unbind(1):
            again = torch.bmm(h, turn) if added is None else torch.baddbmm(added, h, turn)
            (r, z, n), (ar, az, an) = now.chunk(3, -1), again.chunk(3, -1)
            z = (z + az).sigmoid()
            h = torch.lerp((n + (r + ar).sigmoid() * an).tanh(), h, z)
            outs.append(h)
        return torch.stack(outs, 1), [h]


class Plain(Recurrent):
    """``nn.RNN`` (Elman 1990), with tanh or ReLU."""

    def __init__(self, original: nn.RNN, lanes: Any) -> None:
        super().__init__(original, lanes)
        self.squash: Callable[[Tensor], Tensor] = torch.tanh if original.nonlinearity == "tanh" else torch.relu

    def _sweep(self, xs: Tensor, state: list[Tensor], weights: list[Any], fused: bool) -> tuple[Tensor, list[Tensor]]:
        own, recurrent, bias, more = weights
        both = None if bias is None else bias + more
        turn, (h,), outs = recurrent.mT, state, []
        for now in self._input(xs, own, both).unbind(1):
            h = self.squash(torch.baddbmm(now, h, turn))
            outs.append(h)
        return torch.stack(outs, 1), [h]
