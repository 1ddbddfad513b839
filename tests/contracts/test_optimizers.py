"""Every optimiser of the core against torch.optim, or its paper's formula written out; NumPy and torch alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insitu.core import arrays, tree, wire
from insitu.core.errors import PlanError
from insitu.core.optim import OPTIMIZERS, Adagrad, Adam, AdamW, Momentum, Nesterov, Sgd, Yogi, optimizer

STEPS = 20
CASES = {
    "sgd": (Sgd(), lambda p: torch.optim.SGD(p, lr=0.05)),
    "sgd-decay": (Sgd(weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1)),
    "momentum": (Momentum(0.8), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8)),
    "momentum-decay": (
        Momentum(0.8, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.1),
    ),
    "nesterov": (Nesterov(0.8), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True)),
    "nesterov-decay": (
        Nesterov(0.8, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "adagrad": (Adagrad(), lambda p: torch.optim.Adagrad(p, lr=0.05)),
    "adam": (Adam(), lambda p: torch.optim.Adam(p, lr=0.05)),
    "adam-betas": (Adam(0.5, 0.9, 1e-3), lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.5, 0.9), eps=1e-3)),
    "adamw": (AdamW(), lambda p: torch.optim.AdamW(p, lr=0.05)),
    "adamw-decay": (AdamW(weight_decay=0.3), lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3)),
    "yogi": (Yogi(), None),
}
KINDS = ["numpy", "torch"]


def start() -> dict:
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=(4, 3)), "deep": {"b": rng.normal(size=3)}}


def slopes(params: dict, step: int) -> dict:
    """Gradients that depend on the parameters and change sign and size, so that all running averages matter."""
    rng = np.random.default_rng(step)
    return tree.map(lambda p: np.sin(3 * p) + p * rng.normal() + 0.1 * rng.normal(size=p.shape), params)


def ours(chosen, kind: str, dtype=np.float64, lr=0.05, steps=STEPS) -> dict:
    params = tree.map(lambda x: x.astype(dtype), start())
    if kind == "torch":
        params = tree.map(torch.from_numpy, params)
    leaf = tree.first_leaf(params)
    state = chosen.init(params)
    for step in range(steps):
        grads = tree.map(
            lambda g: arrays.like(g.astype(dtype), leaf), slopes(tree.map(lambda x: np.asarray(x), params), step)
        )
        params, state = chosen.update(grads, state, params, arrays.scalar(lr, leaf))
    return tree.map(lambda x: np.asarray(x), params)


def theirs(make) -> dict:
    params = tree.map(lambda x: torch.from_numpy(x).requires_grad_(), start())
    leaves = tree.values(params)
    made = make(leaves)
    for step in range(STEPS):
        grads = slopes(tree.map(lambda x: x.detach().numpy(), params), step)
        for leaf, g in zip(leaves, tree.values(grads), strict=True):
            leaf.grad = torch.from_numpy(np.array(g))
        made.step()
    return tree.map(lambda x: x.detach().numpy(), params)


def yogi_by_hand() -> dict:
    """Zaheer et al. 2018, algorithm 2, with Adam's bias correction, element by element."""
    params = start()
    flat = tree.flatten(params)
    m, v = np.zeros_like(flat), np.zeros_like(flat)
    for step in range(STEPS):
        g = tree.flatten(slopes(tree.unflatten(flat, params), step))
        for i in range(len(flat)):
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = v[i] - 0.001 * np.sign(v[i] - g[i] ** 2) * g[i] ** 2
        m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        flat = flat - 0.05 * m_hat / (np.sqrt(v_hat) + 1e-3)
    return tree.unflatten(flat, params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_known_optimiser(name, kind):
    chosen, make = CASES[name]
    expected = yogi_by_hand() if make is None else theirs(make)
    found = ours(chosen, kind)
    assert np.abs(tree.flatten(expected) - tree.flatten(start())).max() > 0.05  # it went somewhere
    np.testing.assert_allclose(tree.flatten(found), tree.flatten(expected), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1] is not None])
def test_it_is_close_in_float32_too(name):
    """Bias corrections near zero (1 − 0.999) must not lose their digits."""
    chosen, make = CASES[name]
    found = ours(chosen, "torch", np.float32)
    assert {leaf.dtype for leaf in tree.values(found)} == {np.dtype("float32")}
    np.testing.assert_allclose(tree.flatten(found), tree.flatten(theirs(make)), rtol=0, atol=2e-5)


def test_every_optimiser_is_tried():
    assert {type(chosen) for chosen, _ in CASES.values()} == set(OPTIMIZERS.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_init_and_update_are_pure(name, kind):
    chosen = CASES[name][0]
    params = start() if kind == "numpy" else tree.map(torch.from_numpy, start())
    grads = tree.map(lambda x: x * 0.5 + 1, params)
    lr = arrays.scalar(0.1, tree.first_leaf(params))
    state = chosen.init(params)
    _, state = chosen.update(grads, state, params, lr)
    inputs = {"params": params, "grads": grads, "state": state, "lr": lr}
    before = wire.encode(inputs)
    first = chosen.update(grads, state, params, lr)
    second = chosen.update(grads, state, params, lr)
    assert wire.encode(inputs) == before
    assert wire.encode(list(first)) == wire.encode(list(second))
    assert wire.encode(chosen.init(params)) == wire.encode(chosen.init(params))
    assert wire.encode(params) == wire.encode(inputs["params"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["adam", "adamw", "yogi"])
def test_the_first_steps_in_half_precision_have_their_full_length(name, dtype):
    """1 − 0.999 is 0 in bfloat16: a bias correction computed in it makes the first step zero or infinite."""
    params = {"w": torch.tensor([1.0, -2.0], dtype=dtype)}
    grads = {"w": torch.tensor([0.5, 0.25], dtype=dtype)}
    chosen = CASES[name][0]
    after, _ = chosen.update(grads, chosen.init(params), params, torch.tensor(0.125, dtype=dtype))
    moved = (after["w"] - params["w"]).float()
    np.testing.assert_allclose(moved.numpy(), [-0.125, -0.125], rtol=0.1)


def test_the_count_goes_on_in_half_precision():
    """bfloat16 counts to 256 and stays there."""
    params = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    state = Adam().init(params)
    for _ in range(300):
        _, state = Adam().update(params, state, params, torch.tensor(0.0, dtype=torch.bfloat16))
    assert int(state["count"]) == 300


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Momentum(1.0), "beta=1.0"),
        (lambda: Momentum(-0.1), "beta=-0.1"),
        (lambda: Adam(beta2=1.5), "beta2=1.5"),
        (lambda: Adam(epsilon=0), "epsilon=0"),
        (lambda: Sgd(weight_decay=-1), "weight_decay=-1"),
        (lambda: Adam(beta1=float("nan")), "beta1=nan"),
        (lambda: optimizer("sdg"), "'sdg'"),
        (lambda: optimizer(Adam), "Adam"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(PlanError, match=says):
        make()


def test_names_give_the_defaults():
    assert {name: optimizer(name) for name in OPTIMIZERS} == {name: cls() for name, cls in OPTIMIZERS.items()}
    assert optimizer(Adam(0.5)) == Adam(0.5)
