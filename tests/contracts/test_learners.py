"""What every learner with gradients promises: the gradient is the loss's, and padding weighs nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract_cases import CLASSES, MODELS, arrays, learner, module
from torch.func import functional_call

from insitu.core import arrays as array_functions
from insitu.core import tree
from insitu.core.protocols import GradientLearner
from insitu.core.types import Client, Data, Variables
from insitu.learners.numpy import LinearLearner, LogisticLearner


def values() -> np.ndarray:
    return np.random.default_rng(4).normal(size=20)


CASES = {
    **{f"torch-{name}": lambda name=name: (learner(name), Data(*arrays(name, 20))) for name in MODELS},
    "numpy-linear": lambda: (LinearLearner(6, l2=0.1), Data(arrays("logistic", 20)[0], values())),
    "numpy-logistic": lambda: (LogisticLearner(6, CLASSES, l2=0.1), Data(*arrays("logistic", 20))),
}


@pytest.fixture(params=CASES)
def case(request):
    made, data = CASES[request.param]()
    assert isinstance(made, GradientLearner)
    made.check(Client("a", data))
    start = made.init(0)
    if request.param.startswith("numpy"):  # zeros would hide much
        rng = np.random.default_rng(0)
        start = Variables(shared=tree.map(lambda w: rng.normal(size=w.shape), start.shared))
    return made, data, start


def batch_of(made, data, start, weight, index=None):
    like = tree.first_leaf(start.shared)
    index = np.arange(len(data)) if index is None else index
    return {
        **made.batch(data, index),
        "weight": array_functions.like(np.asarray(weight, dtype=np.float64), like),
        "seed": array_functions.like(np.asarray(123456789012), like),
    }


def gradient(made, variables, batch, step=3):
    like = tree.first_leaf(variables.shared)
    return made.gradient(variables, batch, array_functions.like(np.asarray(step), like))


def test_padding_changes_nothing(case):
    """Examples of weight zero behind the others: other rows than these, so that they would show."""
    made, data, start = case
    five = gradient(made, start, batch_of(made, data, start, np.ones(5), np.arange(5)))
    for padding in ([7, 8, 9], [19, 18, 17, 16, 15, 14]):
        index = np.array([*range(5), *padding])
        weight = np.array([1.0] * 5 + [0.0] * len(padding))
        padded = gradient(made, start, batch_of(made, data, start, weight, index))
        for a, b in zip(tree.values(five[0]), tree.values(padded[0]), strict=True):
            np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=1e-11, atol=1e-13)
        assert {k: float(v) for k, v in padded[2].items()} == pytest.approx({k: float(v) for k, v in five[2].items()})
    assert float(five[2]["examples"]) == 5


def test_the_gradient_is_that_of_the_weighted_mean_loss(case):
    """Against central differences of the loss that the sums tell, along random directions."""
    made, data, start = case
    weight = np.linspace(0.5, 2.0, 20)
    batch = batch_of(made, data, start, weight)
    grads, _, sums = gradient(made, start, batch)
    assert float(sums["examples"]) == pytest.approx(weight.sum())
    l2 = getattr(made, "l2", 0.0)

    def loss(shared) -> float:
        told = gradient(made, Variables(shared=shared), batch)[2]
        penalty = l2 / 2 * float((np.asarray(shared["weight"]) ** 2).sum()) if l2 else 0.0
        return float(told["loss"]) / float(told["examples"]) + penalty

    for seed in range(4):
        rng = np.random.default_rng(seed)
        direction = tree.map(lambda w, rng=rng: array_functions.like(rng.normal(size=tuple(w.shape)), w), start.shared)
        step = 1e-6
        ahead = loss(tree.map(lambda w, d, step=step: w + step * d, start.shared, direction))
        behind = loss(tree.map(lambda w, d, step=step: w - step * d, start.shared, direction))
        slope = sum(
            float((g * d).sum()) for g, d in zip(tree.values(grads["shared"]), tree.values(direction), strict=True)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["logistic", "batchnorm"])
def test_the_torch_gradient_is_autograds(name):
    """A module without dropout, in training mode, by loss.backward()."""
    made, (x, y) = learner(name), arrays(name, 12)
    made.check(Client("a", Data(x, y)))
    start = made.init(0)
    weight = np.linspace(0.2, 3.0, 12)
    grads, state, sums = gradient(made, start, batch_of(made, Data(x, y), start, weight))
    plain = module(name).train()
    w = torch.from_numpy(weight)
    losses = F.cross_entropy(plain(torch.from_numpy(x)), torch.from_numpy(y), reduction="none")
    ((losses * w).sum() / w.sum()).backward()
    for key, parameter in plain.named_parameters():
        np.testing.assert_allclose(grads["shared"][key].numpy(), parameter.grad.numpy(), rtol=1e-11, atol=1e-14)
    for key, buffer in plain.named_buffers():
        np.testing.assert_allclose(state["buffers"][key].numpy(), buffer.numpy(), rtol=1e-12)
    assert float(sums["loss"]) == pytest.approx(float((losses * w).sum().detach()))


def test_evaluation_is_the_plain_module(case):
    made, data, start = case
    sums = made.evaluate(start, data)
    assert sums["examples"] == 20
    assert set(sums) == {"examples", *made.metric_names}
    if isinstance(made, (LinearLearner, LogisticLearner)):
        scores = data.x @ start.shared["weight"].T + start.shared["bias"]
        if isinstance(made, LinearLearner):
            assert sums["loss"] == pytest.approx(((scores[:, 0] - data.y) ** 2).sum())
            return
        expected = F.cross_entropy(torch.from_numpy(scores), torch.from_numpy(data.y), reduction="sum")
        assert sums["loss"] == pytest.approx(float(expected))
        return
    plain = made.model(start)
    with torch.no_grad():
        output = plain(torch.from_numpy(data.x))
    y = torch.from_numpy(data.y)
    assert sums["loss"] == pytest.approx(float(F.cross_entropy(output, y, reduction="sum")))
    assert sums["accuracy"] == float((output.argmax(1) == y).sum())
    np.testing.assert_array_equal(made.predict(start, data.x), output.argmax(1).numpy())


def test_a_gradient_is_pure(case):
    made, data, start = case
    batch = batch_of(made, data, start, np.ones(20))
    before = [np.asarray(leaf).copy() for leaf in (*tree.values(start.shared), *tree.values(batch))]
    first = gradient(made, start, batch)
    second = gradient(made, start, batch)
    for a, b in zip(tree.values(dict(enumerate(first))), tree.values(dict(enumerate(second))), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    for a, b in zip((*tree.values(start.shared), *tree.values(batch)), before, strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_a_batch_of_weight_zero_gives_no_nan(case):
    """An idle lane's batch: its gradient is thrown away, but must not poison a sum on the way."""
    made, data, start = case
    grads, _, sums = gradient(made, start, batch_of(made, data, start, np.zeros(20)))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in tree.values(grads))
    assert float(sums["examples"]) == 0
    assert float(sums["loss"]) == 0


def test_functional_call_and_model_agree():
    """model() gives the module back with the variables in their places."""
    made = learner("cnn")
    x = torch.from_numpy(arrays("cnn", 4)[0])
    rng = np.random.default_rng(1)
    changed = tree.map(lambda w: torch.from_numpy(rng.normal(size=tuple(w.shape))), made.init(0).shared)
    plain = module("cnn").eval()
    with torch.no_grad():
        torch.testing.assert_close(made.model(Variables(shared=changed))(x), functional_call(plain, changed, (x,)))
