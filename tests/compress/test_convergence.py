"""On small convex problems: with error feedback to the optimum, without it not; among neighbours the same."""

from __future__ import annotations

import numpy as np
import pytest

import insitu
from insitu.algorithms.choco import Choco
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedsgd import FedSGD
from insitu.algorithms.gossip import Gossip
from insitu.compress.half import Half
from insitu.compress.powersgd import PowerSGD
from insitu.compress.quantize import Quantize
from insitu.compress.randomk import RandomK
from insitu.compress.signs import Signs
from insitu.compress.topk import TopK
from insitu.core import tree
from insitu.data.clients import Clients
from insitu.learners.numpy import LinearLearner

RNG = np.random.default_rng(0)


def run(algorithm, clients, *stages, features=2, rounds=400):
    plan = insitu.Plan(algorithm, learner=LinearLearner(features), stages=stages, evaluate_every=0)
    return insitu.run(plan, clients, rounds=rounds, engine="inline", seed=0, store=None, observers=[])


def line(examples, optimum) -> Clients:
    """One example a client, all of them on the plane through the optimum."""
    x = np.asarray(examples, float)
    return Clients.from_arrays(x, x @ optimum, [np.array([i]) for i in range(len(x))])


DESCENT = FedSGD(lr=0.04)


def test_signs_without_feedback_never_leave_a_line_and_with_it_arrive():
    """Karimireddy et al. 2019, counterexample 3: all features are positive, so the signs of every gradient are ±(1, 1),
    and the model stays on that line; the optimum is off it."""
    optimum = np.array([1.0, -1.0])
    clients = line([[3, 1], [1, 3], [2, 1]], optimum)
    stuck = run(DESCENT, clients, Signs(feedback=False, smallest=0)).params["weight"][0]
    assert stuck[0] == pytest.approx(stuck[1], abs=1e-12)
    assert np.linalg.norm(stuck - optimum) > 1.4
    free = run(DESCENT, clients, Signs(smallest=0), rounds=1500).params["weight"][0]
    np.testing.assert_allclose(free, optimum, atol=1e-2)


def test_the_largest_without_feedback_never_learn_the_smaller_and_with_it_arrive():
    """In every example the first feature is the largest, so only its gradient is told."""
    optimum = np.array([1.0, -1.0])
    clients = line([[3, 1], [3, -1], [2, 1]], optimum)
    options = {"fraction": 0.5, "smallest": 0}
    stuck = run(DESCENT, clients, TopK(**options, feedback=False)).params["weight"][0]
    assert stuck[1] == 0
    free = run(DESCENT, clients, TopK(**options), rounds=1500).params["weight"][0]
    np.testing.assert_allclose(free, optimum, atol=1e-2)


FEATURES = 30
OPTIMUM = RNG.normal(size=FEATURES)
X = RNG.normal(size=(160, FEATURES))
PARTS = np.array_split(np.arange(160), 4)
EXACT = Clients.from_arrays(X, X @ OPTIMUM, PARTS)
NOISY_Y = X @ OPTIMUM + np.repeat(RNG.normal(size=4), 40)
NOISY = Clients.from_arrays(X, NOISY_Y, PARTS)
LEAST_SQUARES = np.linalg.lstsq(np.c_[X, np.ones(160)], NOISY_Y, rcond=None)[0]


@pytest.mark.parametrize(
    "stage",
    [TopK(0.1, smallest=0), RandomK(0.1, smallest=0), Signs(smallest=0), Quantize(4, smallest=0), Half(smallest=0)],
    ids=lambda stage: stage.part_name(),
)
def test_federated_averaging_comes_to_the_optimum(stage):
    result = run(FedAvg(lr=0.02, batch_size=None), EXACT, stage, features=FEATURES, rounds=500)
    np.testing.assert_allclose(result.params["weight"][0], OPTIMUM, atol=1e-2)


def test_low_rank_without_feedback_never_learns_the_smaller_direction_and_with_it_arrives():
    """Two clients that disagree in the first output by ±5 along one feature, and both want 1 in the second output along
    another: the gradients' largest singular direction is what they disagree on, which cancels in the mean."""
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 6)))[0] * np.sqrt(20)
    x -= x.mean(axis=0)
    own = [np.zeros((2, 6)), np.zeros((2, 6))]
    for sign, wanted in zip((1, -1), own, strict=True):
        wanted[0, 0], wanted[1, 1] = 5 * sign, 1
    clients = Clients.from_arrays(
        np.r_[x, x], np.r_[x @ own[0].T, x @ own[1].T], [np.arange(20), np.arange(20, 40)]
    )  # fmt: skip

    def second_output(feedback):
        plan = insitu.Plan(
            FedSGD(lr=0.02), LinearLearner(6, outputs=2), evaluate_every=0,
            stages=(PowerSGD(1, smallest=0, feedback=feedback),),
        )  # fmt: skip
        result = insitu.run(plan, clients, rounds=600, engine="inline", seed=0, store=None, observers=[])
        return result.params["weight"][1, 1]

    assert abs(second_output(False)) < 0.5
    assert second_output(True) == pytest.approx(1, abs=0.15)


# ------------------------------------------------------------ among neighbours


@pytest.mark.parametrize(
    ("stage", "gamma"),
    [
        (TopK(0.1, smallest=0, feedback=False), 0.3),
        (RandomK(0.1, smallest=0, feedback=False), 0.1),
        (Signs(smallest=0, feedback=False), 0.3),
        (Quantize(4, smallest=0), 1.0),
        (Half(smallest=0), 1.0),
    ],
    ids=lambda value: getattr(value, "part_name", lambda: value)(),
)
@pytest.mark.parametrize("topology", ["ring", "complete"])
def test_choco_agrees_on_the_optimum(stage, gamma, topology):
    """Where one model fits all nodes there is no bias of local steps, so all nodes come to it."""
    algorithm = Choco(topology=topology, gamma=gamma, lr=0.02, batch_size=None)
    result = run(algorithm, EXACT, stage, features=FEATURES, rounds=500)
    np.testing.assert_allclose(result.params["weight"][0], OPTIMUM, atol=1e-2)
    assert result.history[-1]["disagreement"] < 1e-2


def test_gossip_with_quantised_parameters_stays_near_what_it_is_without():
    plain = run(Gossip(lr=0.01, batch_size=None), NOISY, features=FEATURES, rounds=300)
    found = run(Gossip(lr=0.01, batch_size=None), NOISY, Quantize(8, smallest=0), features=FEATURES, rounds=300)
    size = np.abs(tree.flatten(plain.params)).max()
    assert 0 < np.abs(tree.flatten(found.params) - tree.flatten(plain.params)).max() < 0.02 * size
    assert found.history[-1]["bytes_up"] < plain.history[-1]["bytes_up"] / 4


def test_feedback_keeps_the_mean_of_what_nodes_told_and_still_have_to_tell():
    """Σ (x + e) over nodes is changed by training alone: with a learning rate of nearly zero it stays."""
    result = run(Gossip(lr=1e-12, batch_size=None), NOISY, Quantize(4, smallest=0, feedback=True), features=FEATURES)
    left = sum(memory["stages"]["0"]["shared"]["weight"]["lost"] for memory in result.memories.values()) / 4
    np.testing.assert_allclose(result.params["weight"] + left, 0, atol=1e-7)


def test_least_squares_with_uneven_clients_is_as_near_as_without():
    """FedSGD has no bias of local steps: the optimum is that of all data in one place."""
    for stage in (TopK(0.2, smallest=0), Signs(smallest=0), RandomK(0.2, smallest=0)):
        result = run(FedSGD(lr=0.02), NOISY, stage, features=FEATURES, rounds=500)
        found = np.r_[result.params["weight"][0], result.params["bias"]]
        assert np.abs(found - LEAST_SQUARES).max() < 0.05, stage
