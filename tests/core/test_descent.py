"""Descent's parts: open → step … → close, clipping, and the server's step along the mean change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insitu.algorithms.fedavg import FedAvg
from insitu.core import seeds, tree
from insitu.core.descent import clipped, descend
from insitu.core.errors import PlanError
from insitu.core.optim import Adam, Momentum, Sgd
from insitu.core.types import Client, Data, Task
from insitu.learners.numpy import LinearLearner
from insitu.learners.torch import TorchLearner


def regression(n: int = 11):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    return Client("a", Data(x, x @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=n)))


def told(algorithm, learner, client, memory=None, round=4):
    learner.check(client)
    state = algorithm.init(learner.init(9))
    task = Task("run", round, round - 1, "train", client.id, algorithm.ask(state, round), 9)
    return state, *algorithm.local(task, client, learner, memory)


def test_local_is_a_naive_loop():
    """Linear regression in NumPy, momentum, two epochs of batches of four: by hand."""
    client, algorithm = regression(), FedAvg(lr=0.05, epochs=2, batch_size=4, optimizer=Momentum(0.5))
    _, update, memory = told(algorithm, LinearLearner(3), client)
    order = np.random.Generator(np.random.Philox(key=seeds.seed(9, 4, "a", "batches")))
    w, b, vw, vb, loss = np.zeros(3), 0.0, np.zeros(3), 0.0, 0.0
    for _ in range(2):
        shuffled = order.permutation(11)
        for rows in (shuffled[:4], shuffled[4:8], shuffled[8:]):
            x, y = client.data.x[rows], client.data.y[rows]
            residual = x @ w + b - y
            loss += (residual**2).sum()
            vw, vb = 0.5 * vw + 2 * x.T @ residual / len(rows), 0.5 * vb + 2 * residual.mean()
            w, b = w - 0.05 * vw, b - 0.05 * vb
    np.testing.assert_allclose(update.value["shared"]["weight"][0], w, rtol=1e-12)
    np.testing.assert_allclose(update.value["shared"]["bias"], [b], rtol=1e-12)
    assert update.weight == {"shared": 11.0}
    assert update.metrics["examples"] == 22
    assert update.metrics["loss"] == pytest.approx(loss)
    assert memory is None


def test_clipping_is_of_the_whole_gradient():
    grads = {"shared": {"a": np.array([3.0, 0.0])}, "personal": {"b": np.array([[4.0]])}}
    assert tree.norm(clipped(grads, 1.0)) == pytest.approx(1.0)
    np.testing.assert_allclose(clipped(grads, 2.5)["shared"]["a"], [1.5, 0])
    for largest in (5.0, 7.0):
        np.testing.assert_array_equal(clipped(grads, largest)["personal"]["b"], [[4.0]])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_zero_gradient_is_clipped_to_zero_without_a_warning(kind):
    grads = {"a": np.zeros(3) if kind == "numpy" else torch.zeros(3)}
    assert np.asarray(clipped(grads, 1.0)["a"]).tolist() == [0, 0, 0]


def test_the_plain_average_adds_the_mean_change():
    state = {"shared": {"w": np.array([1.0, 2.0])}}
    after = descend(state, {"w": np.array([0.5, -1.0])}, Sgd(), 1.0)
    np.testing.assert_array_equal(after["shared"]["w"], [1.5, 1.0])
    np.testing.assert_array_equal(state["shared"]["w"], [1.0, 2.0])


@pytest.mark.parametrize(
    ("server", "theirs"),
    [
        (Sgd(), lambda p: torch.optim.SGD(p, lr=0.3)),
        (Momentum(0.9), lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)),
        (Adam(), lambda p: torch.optim.Adam(p, lr=0.3)),
    ],
)
def test_a_server_optimiser_takes_the_change_as_a_negative_gradient(server, theirs):
    state = {"shared": {"w": np.array([1.0, 2.0])}}
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    by_torch = theirs([w])
    for round in range(6):
        change = np.random.default_rng(round).normal(size=2)
        state = descend(state, {"w": change}, server, 0.3)
        w.grad = torch.from_numpy(-change)
        by_torch.step()
        np.testing.assert_allclose(state["shared"]["w"], w.detach().numpy(), rtol=1e-12)


def test_a_method_that_trains_says_that_it_needs_a_model():
    with pytest.raises(PlanError, match=r"FedAvg.*learner="):
        FedAvg().init(None)


def test_the_clients_optimiser_starts_anew_each_round_and_the_model_does_not():
    client, algorithm = regression(), FedAvg(lr=0.05, batch_size=None, optimizer=Momentum(0.9))
    state, update, _ = told(algorithm, LinearLearner(3), client)
    moved = {**state, "shared": tree.add(state["shared"], update.value["shared"])}
    task = Task("run", 5, 4, "train", "a", algorithm.ask(moved, 5), 9)
    second, _ = algorithm.local(task, client, LinearLearner(3), None)
    w = update.value["shared"]["weight"][0]
    residual = client.data.x @ w + update.value["shared"]["bias"] - client.data.y
    np.testing.assert_allclose(
        second.value["shared"]["weight"][0], -0.05 * 2 * client.data.x.T @ residual / 11, rtol=1e-12
    )


def test_a_job_reads_its_personal_part_from_memory_and_writes_it_back():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).double()
    learner = TorchLearner(module, loss="mse", personal=("1",))
    algorithm, client = FedAvg(lr=0.1, batch_size=None), regression()
    _, update, memory = told(algorithm, learner, client)
    assert set(update.value["shared"]) == {"0.weight", "0.bias"}
    assert set(memory["personal"]["params"]) == {"1.weight", "1.bias"}
    assert not torch.equal(memory["personal"]["params"]["1.weight"], module[1].weight)
    doubled = tree.map(lambda p: p * 2, memory)
    _, again, _ = told(algorithm, learner, client, doubled)
    assert not torch.equal(again.value["shared"]["0.weight"], update.value["shared"]["0.weight"])
    assert torch.equal(told(algorithm, learner, client, memory)[1].value["shared"]["0.bias"],
                       told(algorithm, learner, client, memory)[1].value["shared"]["0.bias"])  # fmt: skip
