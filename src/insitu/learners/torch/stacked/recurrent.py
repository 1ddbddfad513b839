"""Recurrent layers with one set of weights a lane.

torch's own recurrent kernels know one set of weights. On a CPU they are so good that they are called lane after lane
(an LSTM of 128 over 80 steps: 9.4 ms a client, 11.1 ms by the loop below). On a GPU, which wants few and large calls,
and with dropout between layers, the loop over time is ours, each turn one product for all lanes.
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

    x [K, T, B, F]; own [K, 4H, F], recurrent [K, 4H, H], bias [K, 4H] (both biases' sum) or None, gates in the order
    input, forget, cell, output; first, cell [K, B, H] → outputs [T, K, B, H], last cell [K, B, H].

    Inside, time stands in front, so that each turn of the loop works on one piece of memory that fits into the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, own: Tensor, recurrent: Tensor, bias: Tensor | None,
        first: Tensor, cell: Tensor, lr: float | None, anchor: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        (k, steps, b, _), h = x.shape, recurrent.shape[2]
        x = x.reshape(k, steps * b, -1)
        share = torch.bmm(x, own.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, own.mT)
        gates = share.view(k, steps, b, 4 * h).transpose(0, 1).contiguous()
        outputs = gates.new_empty(steps + 1, k, b, h)
        cells, squashed = torch.empty_like(outputs), gates.new_empty(steps, k, b, h)
        outputs[0], cells[0] = first, cell
        turned = recurrent.mT.contiguous()  # a product with it is half as fast again where rows are read in order
        i, f, g, o = (gate.unbind() for gate in gates.chunk(4, -1))
        both = gates[..., : 2 * h].unbind()
        turns = (gates.unbind(), both, i, f, g, o, outputs.unbind(), cells.unbind(), squashed.unbind())
        now, both, i, f, g, o, out, c, tanh = turns
        for t in range(steps):
            now[t].baddbmm_(out[t], turned)
            both[t].sigmoid_()
            g[t].tanh_()
            o[t].sigmoid_()
            torch.mul(f[t], c[t], out=c[t + 1])
            c[t + 1].addcmul_(i[t], g[t])
            torch.tanh(c[t + 1], out=tanh[t])
            torch.mul(o[t], tanh[t], out=out[t + 1])
        ctx.save_for_backward(x, own, recurrent, gates, outputs, cells, squashed)
        ctx.lr, ctx.biased = lr, bias is not None
        return outputs[1:], cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, own, recurrent, gates, outputs, cells, squashed = ctx.saved_tensors
        steps, k, b, width = gates.shape
        h = width // 4
        # What each gate's gradient is multiplied by, for all times at once; the loop does only what depends on time.
        down, through = _slopes(gates, cells, squashed)
        forget = gates[..., h : 2 * h].unbind()
        whole, last, above = down.unbind(), down[..., 3 * h :].unbind(), grads[0].unbind()
        three = down[..., : 3 * h].view(steps, k, b, 3, h).unbind()
        by = through.unbind()
        dh = torch.zeros_like(cells[0])
        dc = dh.clone() if grads[1] is None else grads[1].clone()
        wide = dc.unsqueeze(2)
        for t in range(steps - 1, -1, -1):
            dh.add_(above[t])
            dc.addcmul_(dh, by[t])
            three[t].mul_(wide)
            last[t].mul_(dh)
            dc.mul_(forget[t])
            torch.bmm(whole[t], recurrent, out=dh)
        flat, before = (a.transpose(0, 1).reshape(k, -1, a.shape[-1]) for a in (down, outputs[:-1]))
        deep = torch.bmm(flat, own).view(k, steps, b, -1) if ctx.needs_input_grad[0] else None
        change = flat.sum(1) if ctx.biased else None
        if ctx.lr is None:
            return deep, torch.bmm(flat.mT, x), torch.bmm(flat.mT, before), change, dh, dc, None, None
        own.sub_(torch.bmm(x.mT, flat).mT, alpha=ctx.lr)
        recurrent.baddbmm_(flat.mT, before, alpha=-ctx.lr)
        return deep, None, None, change, dh, dc, None, None


def _slopes(gates: Tensor, cells: Tensor, squashed: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the cell (by the last gate: of the output) by gates [T, K, B, 4H], of the output by the cell."""
    i, f, g, o = gates.chunk(4, -1)
    slopes = torch.empty_like(gates)
    di, df, dg, do = slopes.chunk(4, -1)
    sigmoid, tanh = torch.ops.aten.sigmoid_backward.grad_input, torch.ops.aten.tanh_backward
    sigmoid(g, i, grad_input=di)
    sigmoid(cells[:-1], f, grad_input=df)
    tanh.grad_input(i, g, grad_input=dg)
    sigmoid(squashed, o, grad_input=do)
    return slopes, tanh(o, squashed)


class Recurrent(Layer, ABC):
    """What LSTM, GRU and plain recurrent layers have in common: layers, directions, layouts."""

    kernel: Callable[..., Any]
    """torch's own, for one lane."""

    def __init__(self, original: Any, lanes: Any) -> None:
        super().__init__(original, lanes)
        self.layers, self.hidden, self.batch_first = original.num_layers, original.hidden_size, original.batch_first
        self.directions, self.drop = 2 if original.bidirectional else 1, original.dropout
        self.biased = original.bias

    def forward(self, x: Tensor, start: Any = None) -> tuple[Tensor, Any]:
        """[K·B, T, F] (or [T, K·B, F]) → [K·B, T, directions · H] and the last states, as torch's layers do."""
        fused = self.fused()
        if x.device.type == "cpu" and not (self.drop and self.training and self.layers > 1):
            return self._one_by_one(x, start)
        return self._side_by_side(x, start, fused)

    def _one_by_one(self, x: Tensor, start: Any) -> tuple[Tensor, Any]:
        """torch's kernel, lane after lane."""
        k, batch = self.lanes.count, 0 if self.batch_first else 1
        pair = isinstance(self, Lstm)
        if start is None:
            zeros = x.new_zeros(self.layers * self.directions, x.shape[batch], self.hidden)
            start = (zeros, zeros) if pair else zeros
        states = [s.chunk(k, 1) for s in (start if pair else (start,))]
        weights = [self.use(name).unbind() for name in self.names]
        settings = (self.biased, self.layers, 0.0, self.training, self.directions == 2, self.batch_first)
        told = []
        for lane, part in enumerate(x.chunk(k, batch)):
            state = [s[lane].contiguous() for s in states]
            own = [weight[lane] for weight in weights]
            told.append(self.kernel(part, state if pair else state[0], own, *settings))
        outputs, *last = zip(*told, strict=True)
        ends = tuple(torch.cat(parts, 1) for parts in last)
        return torch.cat(outputs, batch), ends if pair else ends[0]

    def _side_by_side(self, x: Tensor, start: Any, fused: bool) -> tuple[Tensor, Any]:
        """The loop over time for all lanes."""
        k = self.lanes.count
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

    def flatten_parameters(self) -> None:
        """As torch's layers have it; there is nothing to flatten."""

    def _start(self, xs: Tensor, start: Any) -> list[Tensor]:
        k, count = self.lanes.count, 2 if isinstance(self, Lstm) else 1
        if start is None:
            return [xs.new_zeros(self.layers * self.directions, k, xs.shape[2], self.hidden)] * count
        given = start if count > 1 else (start,)
        return [s.unflatten(1, (k, -1)) for s in given]

    def _weights(self, layer: int, direction: int, fused: bool) -> list[Any]:
        """The input's and the recurrent weights, and both biases; fused, an LSTM's weights step by themselves."""
        end = f"_l{layer}" + ("_reverse" if direction else "")
        names = [f"weight_ih{end}", f"weight_hh{end}"]
        alone = fused and isinstance(self, Lstm)
        weights = [self.__dict__[name] if alone else self.use(name) for name in names]
        return [*weights, self.use(f"bias_ih{end}"), self.use(f"bias_hh{end}")]

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

    kernel = staticmethod(torch.lstm)

    def _sweep(self, xs: Tensor, state: list[Tensor], weights: list[Any], fused: bool) -> tuple[Tensor, list[Tensor]]:
        lanes, (own, recurrent, bias, more) = self.lanes, weights
        both = None if bias is None else bias + more
        out, cell = _Lstm.apply(xs, own, recurrent, both, *state, lanes.lr if fused else None, lanes.anchor)
        return out.transpose(0, 1), [out[-1], cell]


class Gru(Recurrent):
    """``nn.GRU`` (Cho et al. 2014, torch's variant: the reset gate acts after the recurrent product)."""

    kernel = staticmethod(torch.gru)

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
        tanh = original.nonlinearity == "tanh"
        self.squash: Callable[[Tensor], Tensor] = torch.tanh if tanh else torch.relu
        self.kernel = torch.rnn_tanh if tanh else torch.rnn_relu

    def _sweep(self, xs: Tensor, state: list[Tensor], weights: list[Any], fused: bool) -> tuple[Tensor, list[Tensor]]:
        own, recurrent, bias, more = weights
        both = None if bias is None else bias + more
        turn, (h,), outs = recurrent.mT, state, []
        for now in self._input(xs, own, both).unbind(1):
            h = self.squash(torch.baddbmm(now, h, turn))
            outs.append(h)
        return torch.stack(outs, 1), [h]
