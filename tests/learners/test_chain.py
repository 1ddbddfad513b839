"""Chains of layers against torch's own modules and optimiser, client by client."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from insitu.learners.torch.chain import chained
from insitu.learners.torch.losses import accuracy, binary_cross_entropy, cross_entropy, mean_absolute_error, mse

LR = 0.3
COUNTS = [3, 3, 2, 1]
"""Lanes at work in each step."""
FLAT, SIGNAL, PICTURE, SOLID = (6,), (2, 12), (2, 9, 8), (1, 5, 6, 5)

MODULES = {
    "one layer": (FLAT, lambda: nn.Linear(6, 3)),
    "without a bias": (FLAT, lambda: nn.Sequential(nn.Linear(6, 3, bias=False))),
    "a perceptron": (
        FLAT,
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
    ),
    "nested, with names": (FLAT, lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Sigmoid()), nn.Linear(5, 3))),
    "an activation first": (FLAT, lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 3))),
    "three activations": (
        FLAT,
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.Linear(5, 3)),
    ),
    "an activation last": (FLAT, lambda: nn.Sequential(nn.Linear(6, 3), nn.Tanh())),
    "reshaped": (
        FLAT,
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 3), nn.Identity()),
    ),
    "pictures": (
        PICTURE,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.Tanh(), nn.Flatten(),
            nn.Linear(27, 3),
        ),
    ),
    "strides, groups, dilation": (
        PICTURE,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), groups=2, bias=False), nn.ReLU(),
            nn.Conv2d(4, 2, 3, dilation=2), nn.Flatten(), nn.Linear(14, 3),
        ),
    ),
    "pools that overlap": (
        PICTURE,
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, stride=1, padding=1), nn.ReLU(), nn.MaxPool2d(3, ceil_mode=True),
            nn.Flatten(), nn.Linear(18, 3),
        ),
    ),
    "a pool first": (PICTURE, lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))),
    "signals": (SIGNAL, lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3))),
    "solids": (SOLID, lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(72, 3))),
}  # fmt: skip


def batch_of(shape, labels=None, seed=0):
    """Two batches of four for each client-step; the last example of every other weighs nothing."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(COUNTS)
    x = torch.randn(rows, 4, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (rows, 4), generator=generator) if labels is None else labels(rows, generator)
    weight = torch.ones(rows, 4, dtype=torch.float64)
    weight[::2, -1] = 0
    return {"x": x, "y": y, "weight": weight, "share": weight / weight.sum(1, keepdim=True)}


def made(make, seed=0):
    torch.manual_seed(seed)
    return make().double()


def stacked(module, lanes=3):
    return {n: torch.stack([p.detach() * (1 - 0.2 * k) for k in range(lanes)]) for n, p in module.named_parameters()}


def built(module, shape, loss=cross_entropy, metrics=None):
    names = [name for name, _ in module.named_parameters()]
    example = torch.zeros(2, *shape, dtype=torch.float64)
    return chained(module, names, example, loss, {"accuracy": accuracy} if metrics is None else metrics)


def client_rows(lane):
    """The client-steps of one lane."""
    starts = [sum(COUNTS[:t]) for t in range(len(COUNTS))]
    return [start + lane for start, n in zip(starts, COUNTS, strict=True) if lane < n]


def by_hand(module, start, lane, batch, loss):
    """One client's steps with torch.optim: its last parameters, and the loss sums of its steps."""
    own = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(start[name][lane])
    optimizer = torch.optim.SGD(own.parameters(), lr=LR)
    told = []
    for row in client_rows(lane):
        weight = batch["weight"][row]
        losses = loss(own(batch["x"][row]), batch["y"][row])
        optimizer.zero_grad()
        ((losses * weight).sum() / weight.sum()).backward()
        optimizer.step()
        told.append(float((losses * weight).sum().detach()))
    return dict(own.named_parameters()), told


def agrees(module, shape, batch, loss=cross_entropy, metrics=None):
    chain, start = built(module, shape, loss, metrics), stacked(module)
    assert chain is not None
    for _ in range(2):  # memory is used again
        held = {name: value.clone() for name, value in start.items()}
        sums = chain.descend(held, batch, COUNTS, LR)
        for lane in range(3):
            end, losses = by_hand(module, start, lane, batch, loss)
            for name, value in end.items():
                torch.testing.assert_close(held[name][lane], value.detach(), rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(sums["loss"][client_rows(lane)].tolist(), losses, rtol=1e-11, atol=1e-12)
    assert sums["examples"].tolist() == batch["weight"].sum(1).tolist()
    return sums


@pytest.mark.parametrize("name", MODULES)
def test_every_client_ends_where_torch_would(name):
    shape, make = MODULES[name]
    batch = batch_of(shape)
    before = {key: value.clone() for key, value in batch.items()}
    agrees(made(make), shape, batch)
    assert all(torch.equal(batch[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("loss", "outputs", "labels"),
    [
        (mse, 1, lambda rows, g: torch.randn(rows, 4, generator=g, dtype=torch.float64)),
        (mse, 2, lambda rows, g: torch.randn(rows, 4, 2, generator=g, dtype=torch.float64)),
        (binary_cross_entropy, 1, lambda rows, g: torch.randint(0, 2, (rows, 4), generator=g)),
        (lambda output, y: (output[:, 0] - y).abs(), 1, lambda rows, g: torch.randint(0, 5, (rows, 4), generator=g)),
    ],
    ids=["mse", "mse of two", "binary", "one's own"],
)
def test_any_loss_of_one_value_an_example(loss, outputs, labels):
    batch = batch_of(FLAT, labels)
    metrics = {"mae": mean_absolute_error} if outputs == batch["y"].dim() - 1 else {}
    agrees(made(lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, outputs))), FLAT, batch, loss, metrics)


def test_accuracy_is_counted_step_by_step():
    batch = batch_of(FLAT)
    module = made(MODULES["a perceptron"][1])
    sums = agrees(module, FLAT, batch)
    first = module(batch["x"][0]).argmax(1) == batch["y"][0]
    assert sums["accuracy"][0] == (first * batch["weight"][0]).sum()


def test_losses_of_logits_that_would_overflow():
    module = made(lambda: nn.Linear(6, 3))
    with torch.no_grad():
        module.weight.mul_(1e4)
    agrees(module, FLAT, batch_of(FLAT))


@pytest.mark.parametrize("name", ["one layer", "a perceptron", "pictures"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_client_has_the_same_bits_whoever_is_beside_it(name, dtype):
    shape, make = MODULES[name]
    module = made(make).to(dtype)
    chain = chained(
        module, [n for n, _ in module.named_parameters()], torch.zeros(1, *shape, dtype=dtype), cross_entropy, {}
    )
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch_of(shape).items()}
    start = {name: value.to(dtype) for name, value in stacked(module).items()}
    together = {name: value.clone() for name, value in start.items()}
    chain.descend(together, batch, COUNTS, LR)
    for lane in range(3):
        alone = {name: value[lane : lane + 1].clone() for name, value in start.items()}
        own = {key: value[client_rows(lane)] for key, value in batch.items()}
        chain.descend(alone, own, [1] * len(client_rows(lane)), LR)
        assert all(torch.equal(alone[key][0], together[key][lane]) for key in alone)


@pytest.mark.parametrize(
    ("shape", "make"),
    [
        (FLAT, lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))),
        (FLAT, lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))),
        (FLAT, lambda: nn.Sequential(nn.Flatten(0), nn.Linear(6, 3))),
        ((5, 6), lambda: nn.Sequential(nn.Linear(6, 3))),
        (FLAT, lambda: nn.Sequential(nn.Linear(7, 3))),
        (PICTURE, lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding_mode="circular", padding=1), nn.Flatten())),
        (PICTURE, lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten())),
        (FLAT, lambda: nn.Sequential(nn.ReLU())),
        (FLAT, lambda: nn.LSTM(6, 3)),
    ],
)
def test_what_is_no_chain_is_left_to_autograd(shape, make):
    assert built(made(make), shape) is None


def test_a_layer_that_is_frozen_is_left_to_autograd():
    module = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    names = ["1.weight", "1.bias"]
    assert chained(module, names, torch.zeros(2, 6), cross_entropy, {}) is None


def test_a_sequential_with_a_forward_of_its_own_is_left_to_autograd():
    class Twice(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    assert built(made(lambda: Twice(nn.Linear(6, 3))), FLAT) is None


def test_whole_numbers_are_left_to_autograd():
    module = nn.Sequential(nn.Linear(6, 3))
    assert chained(module, ["0.weight", "0.bias"], torch.zeros(2, 6, dtype=torch.int64), cross_entropy, {}) is None
