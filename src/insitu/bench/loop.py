"""The yardstick: the sequential loop in PyTorch that a researcher writes by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from insitu.bench.workload import BATCH, LR, Workload

State = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


def train(model: nn.Module, state: State, batches: Iterable[Batch], lr: float = LR) -> float:
    """One client: the model starts from ``state`` and does a step of SGD a batch. Returns the sum of losses."""
    model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    total = 0.0
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
    return total


def round(model: nn.Module, state: State, clients: Iterable[tuple[int, Iterable[Batch]]]) -> tuple[State, float]:
    """All clients of a round, each given as (examples, batches): the mean of their states and the mean loss."""
    total = {name: torch.zeros_like(value) for name, value in state.items()}
    examples, losses = 0, 0.0
    for n, batches in clients:
        losses += train(model, state, batches)
        for name, value in model.state_dict().items():
            total[name] += value * n
        examples += n
    return {name: value / examples for name, value in total.items()}, losses / examples


def shuffled(data: Workload, cohort: Sequence[int]) -> Iterator[tuple[int, Iterator[Batch]]]:
    """The clients at these places with their batches in a new random order."""
    for place in cohort:
        x, y = (torch.from_numpy(column) for column in data.client(place))
        order = torch.randperm(len(y))
        yield len(y), ((x[rows], y[rows]) for rows in order.split(BATCH))
