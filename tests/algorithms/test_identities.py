"""Methods against what they are equal to, computed by hand or by torch.optim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedprox import FedProx
from insitu.algorithms.fedsgd import FedSGD
from insitu.algorithms.scaffold import Scaffold
from insitu.core import seeds, tree
from insitu.core.optim import Momentum, Nesterov, Sgd
from insitu.core.schedules import Cosine, Step
from insitu.data.clients import Clients
from insitu.learners.torch import TorchLearner
from insitu.privacy.clip import Clip

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5))
Y = np.digitize(X[:, 0] - X[:, 1], [-0.7, 0.7])
PARTS = [np.arange(0, 20), np.arange(20, 27), np.arange(27, 39), np.arange(39, 40)]


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def run(algorithm, parts=PARTS, rounds=4, engine="inline", **more):
    clients = Clients.from_arrays(X, Y, parts)
    plan = insitu.Plan(algorithm, learner=TorchLearner(net()), **more)
    return insitu.run(plan, clients, rounds=rounds, engine=engine, seed=4, store=None, observers=[])


def flat(module: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in module.parameters()])


def loss_of(module, rows, reduction="mean"):
    return F.cross_entropy(module(torch.from_numpy(X[rows])), torch.from_numpy(Y[rows]), reduction=reduction)


def descended(make, rounds):
    """Full-batch steps of a torch optimiser on all rows together."""
    module = net()
    optimizer = make(module.parameters())
    for _ in range(rounds):
        optimizer.zero_grad()
        loss_of(module, np.arange(40)).backward()
        optimizer.step()
    return flat(module)


def assert_close(result, expected, tolerance=1e-10):
    found = tree.flatten(result.variables.shared)
    assert np.abs(found - expected).max() / np.abs(expected).max() < tolerance
    assert np.abs(found - flat(net())).max() > 1e-3  # something was learnt


# ------------------------------------------------------------ FedSGD is large-batch SGD


@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.3)),
        (Momentum(0.9), lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)),
        (Nesterov(0.8), lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.8, nesterov=True)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.3)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.3)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.3)),
    ],
)
@pytest.mark.parametrize("engine", ["inline", "vectorized"])
def test_fedsgd_with_everyone_is_large_batch_sgd_on_the_pooled_data(optimizer, theirs, engine):
    assert_close(run(FedSGD(lr=0.3, optimizer=optimizer), rounds=6, engine=engine), descended(theirs, 6))


def test_fedsgd_does_not_care_how_the_data_are_split():
    for parts in ([np.arange(40)], np.array_split(np.arange(40), 7)):
        assert_close(run(FedSGD(lr=0.3), parts), descended(lambda p: torch.optim.SGD(p, lr=0.3), 4))


def test_fedsgd_of_drawn_batches_is_one_step_along_their_gradient():
    """Three examples of each client, those that the seeds say, weighted by how many there are."""
    module, rows = net(), []
    for client, part in enumerate(PARTS):
        order = np.random.Generator(np.random.Philox(key=seeds.seed(4, 1, str(client), "batches"))).permutation(
            len(part)
        )
        rows.append(part[order[:3]])
    loss_of(module, np.concatenate(rows)).backward()
    expected = flat(module) - 0.3 * np.concatenate([p.grad.numpy().reshape(-1) for p in module.parameters()])
    assert_close(run(FedSGD(lr=0.3, batch_size=3), rounds=1), expected)


def test_fedsgd_uniform_is_the_plain_mean_of_gradients():
    module, grads = net(), []
    for part in PARTS:
        module.zero_grad()
        loss_of(module, part).backward()
        grads.append(np.concatenate([p.grad.numpy().reshape(-1) for p in module.parameters()]))
    assert_close(run(FedSGD(lr=0.3, weights="uniform"), rounds=1), flat(module) - 0.3 * np.mean(grads, axis=0))


def test_fedsgd_clips_each_clients_gradient():
    module, total = net(), 0
    for part in PARTS:
        module.zero_grad()
        loss_of(module, part).backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 0.05)
        assert norm > 0.05
        g = np.concatenate([p.grad.numpy().reshape(-1) for p in module.parameters()])
        total = total + len(part) / 40 * g * (0.05 / np.linalg.norm(g))
    assert_close(run(FedSGD(lr=5.0, clip=0.05), rounds=1), flat(module) - 5.0 * total)


# ------------------------------------------------------------ FedAvg


def test_fedavg_of_one_client_and_one_full_batch_is_gradient_descent():
    algorithm = FedAvg(lr=0.2, epochs=1, batch_size=None)
    assert_close(run(algorithm, [np.arange(40)]), descended(lambda p: torch.optim.SGD(p, lr=0.2), 4), 1e-12)


def test_fedavg_of_one_full_batch_each_is_gradient_descent_on_the_pooled_data():
    """One step from the same point: the weighted mean of gradients is the gradient."""
    assert_close(run(FedAvg(lr=0.2, batch_size=None)), descended(lambda p: torch.optim.SGD(p, lr=0.2), 4))


def local_models(lr, steps, start=None, correct=None):
    """Full-batch local descent of every client, by a naive loop; returns their flat models."""
    found = []
    for i, part in enumerate(PARTS):
        module = net()
        if start is not None:
            nn.utils.vector_to_parameters(torch.from_numpy(start), module.parameters())
        first = flat(module)
        for _ in range(steps):
            module.zero_grad()
            loss_of(module, part).backward()
            g = np.concatenate([p.grad.numpy().reshape(-1) for p in module.parameters()])
            w = flat(module)
            if correct is not None:
                g = correct(i, g, w, first)
            nn.utils.vector_to_parameters(torch.from_numpy(w - lr * g), module.parameters())
        found.append(flat(module))
    return np.stack(found)


SIZES = np.array([len(part) for part in PARTS])


@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_fedavg_is_the_weighted_mean_of_local_models(weights):
    w = flat(net())
    for _ in range(3):
        w = np.average(local_models(0.2, 3, w), axis=0, weights=SIZES if weights == "examples" else None)
    assert_close(run(FedAvg(lr=0.2, epochs=3, batch_size=None, weights=weights), rounds=3), w)


@pytest.mark.parametrize(
    ("server", "lr", "theirs"),
    [
        ("sgd", 0.5, lambda p: torch.optim.SGD(p, lr=0.5)),
        (Sgd(weight_decay=0.1), 1.0, lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.1)),
        (Momentum(0.7), 0.4, lambda p: torch.optim.SGD(p, lr=0.4, momentum=0.7)),
        ("adam", 0.05, lambda p: torch.optim.Adam(p, lr=0.05)),
        ("adagrad", 0.05, lambda p: torch.optim.Adagrad(p, lr=0.05)),
    ],
)
def test_a_server_optimiser_steps_along_the_mean_change(server, lr, theirs):
    w = torch.from_numpy(flat(net())).requires_grad_()
    optimizer = theirs([w])
    for _ in range(4):
        start = w.detach().numpy().copy()
        mean = np.average(local_models(0.2, 2, start), axis=0, weights=SIZES)
        w.grad = torch.from_numpy(start - mean)
        optimizer.step()
    algorithm = FedAvg(lr=0.2, epochs=2, batch_size=None, server=server, server_lr=lr)
    assert_close(run(algorithm), w.detach().numpy())


def test_the_clients_learning_rate_follows_its_schedule():
    w = flat(net())
    schedule = Step(0.4, every=1, factor=0.5)
    for lr in (0.4, 0.2, 0.1):
        w = np.average(local_models(lr, 2, w), axis=0, weights=SIZES)
    assert_close(run(FedAvg(lr=schedule, epochs=2, batch_size=None), rounds=3), w)


@pytest.mark.parametrize("engine", ["inline", "vectorized"])
def test_local_clipping(engine):
    def clip(i, g, w, first):
        norm = np.linalg.norm(g)
        return g * min(1, 0.1 / norm)

    w = np.average(local_models(0.5, 3, correct=clip), axis=0, weights=SIZES)
    plain = np.average(local_models(0.5, 3), axis=0, weights=SIZES)
    assert np.abs(w - plain).max() > 1e-3
    assert_close(run(FedAvg(lr=0.5, epochs=3, batch_size=None, clip=0.1), rounds=1, engine=engine), w)


def test_clip_bounds_each_clients_change():
    start = flat(net())
    changes = local_models(0.5, 3) - start
    norms = np.linalg.norm(changes, axis=1)
    bound = float(np.median(norms))
    clipped = changes * np.minimum(1, bound / norms)[:, None]
    assert 0 < (norms > bound).sum() < 4
    result = run(FedAvg(lr=0.5, epochs=3, batch_size=None), rounds=1, stages=(Clip(bound),))
    assert_close(result, start + np.average(clipped, axis=0, weights=SIZES))


# ------------------------------------------------------------ FedProx and SCAFFOLD, by a naive loop


@pytest.mark.parametrize("engine", ["inline", "vectorized"])
def test_fedprox(engine):
    w = flat(net())
    for _ in range(3):
        near = local_models(0.2, 4, w, lambda i, g, now, first: g + 0.7 * (now - first))
        w = np.average(near, axis=0, weights=SIZES)
    assert_close(run(FedProx(mu=0.7, lr=0.2, epochs=4, batch_size=None), rounds=3, engine=engine), w)


@pytest.mark.parametrize("engine", ["inline", "vectorized"])
@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_scaffold_is_algorithm_1_with_option_2(engine, server_lr):
    w, c = flat(net()), np.zeros(len(flat(net())))
    own = np.zeros((4, len(c)))
    lr, steps = 0.2, 3
    for _ in range(4):
        y = local_models(lr, steps, w, lambda i, g, now, first, own=own, c=c: g - own[i] + c)
        new = own - c + (w - y) / (steps * lr)
        w = w + server_lr * (y - w).mean(axis=0)
        c, own = c + (new - own).mean(axis=0), new
    result = run(Scaffold(lr=lr, steps=steps, batch_size=None, server_lr=server_lr), engine=engine)
    assert_close(result, w)
    np.testing.assert_allclose(tree.flatten(result.state["control"]), c, rtol=1e-8, atol=1e-12)


def test_scaffold_of_some_clients_moves_its_control_by_their_share():
    result = run(Scaffold(lr=0.2, steps=2, batch_size=None), rounds=5, cohort=insitu.Uniform(2))
    held = [memory["algorithm"]["method"] for memory in result.memories.values()]
    total = sum(tree.flatten(control) for control in held)
    np.testing.assert_allclose(tree.flatten(result.state["control"]), total / 4, rtol=1e-9, atol=1e-13)


def test_scaffold_outlives_a_schedule():
    """c_i is the distance over lr · steps: a last round with lr=0 would make it 0/0."""
    result = run(Scaffold(lr=Cosine(0.2, rounds=4), steps=2, batch_size=None), rounds=4)
    assert result.rounds == 4
    assert [row["clients"] for row in result.history] == [4] * 4
    assert tree.not_finite(result.state) is None
