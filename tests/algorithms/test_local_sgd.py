"""Local SGD: a loop by hand whose optimisers and batches go on, its limits, and what is kept on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shards import BATCH, PARTS, SEED, Workers, X, Y, close, flat, net, rows, run
from sklearn.linear_model import SGDClassifier

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedsgd import FedSGD
from insitu.algorithms.gossip import Gossip
from insitu.algorithms.local_sgd import LocalSGD
from insitu.core import tree, wire
from insitu.core.errors import PlanError
from insitu.core.optim import AdamW, Momentum
from insitu.engines.processes import Processes
from insitu.engines.vectorized import Vectorized
from insitu.learners.sklearn import SklearnLearner
from insitu.rounds.world import World
from insitu.rounds.world.crowd import examples_of

MAKERS = {
    "momentum": (Momentum(0.8), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)),
    "adamw": (AdamW(), lambda p: torch.optim.AdamW(p, lr=0.1)),
}
ENGINES = {
    "inline": "inline",
    "lanes": Vectorized(lanes=3, compile=False, device="cpu"),
    "workers": Processes(workers=2),
}


def by_hand(make, steps_by_round):
    """Local SGD over torch.optim: optimisers live on, models are averaged."""
    workers = Workers(make)
    for steps in steps_by_round:
        workers.steps(steps)
        workers.set(workers.mean())
    return workers.mean()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MAKERS)
def test_it_is_a_loop_by_hand(name, engine):
    ours, theirs = MAKERS[name]
    algorithm = LocalSGD(lr=0.1, steps=3, batch_size=BATCH, optimizer=ours, keep_optimizer=True)
    close(run(algorithm, 5, ENGINES[engine]), by_hand(theirs, [3] * 5))


def test_an_optimiser_that_is_not_kept_starts_anew():
    ours, theirs = MAKERS["momentum"]
    workers = Workers(theirs)
    for _ in range(4):
        workers.optimizers = [theirs(module.parameters()) for module in workers.modules]
        workers.steps(3)
        workers.set(workers.mean())
    result = run(LocalSGD(lr=0.1, steps=3, batch_size=BATCH, optimizer=ours), 4)
    close(result, workers.mean())
    assert not result.memories
    kept = run(LocalSGD(lr=0.1, steps=3, batch_size=BATCH, optimizer=ours, keep_optimizer=True), 4)
    assert np.abs(tree.flatten(kept.variables.shared) - workers.mean()).max() > 1e-3


def test_post_local_sgd_is_synchronous_until_the_switch():
    ours, theirs = MAKERS["momentum"]
    algorithm = LocalSGD(lr=0.1, steps=4, batch_size=BATCH, optimizer=ours, keep_optimizer=True, switch=3)
    close(run(algorithm, 6), by_hand(theirs, [1, 1, 1, 4, 4, 4]))


def test_a_switch_after_the_end_is_synchronous_sgd():
    """One process with the workers' batches together, each worker's mean counting once."""
    module, lr = net(), 0.1
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for step in range(6):
        optimizer.zero_grad()
        for worker in range(len(PARTS)):
            (batch,) = rows(worker, step, 1)
            loss = F.cross_entropy(module(torch.from_numpy(X[batch])), torch.from_numpy(Y[batch]))
            (loss / len(PARTS)).backward()
        optimizer.step()
    for algorithm in (
        LocalSGD(lr=lr, steps=9, batch_size=BATCH, switch=6),
        LocalSGD(lr=lr, steps=1, batch_size=BATCH),
        FedSGD(lr=lr, batch_size=BATCH, batches="onward", weights="uniform"),
    ):
        close(run(algorithm, 6), flat(module))


def test_one_step_is_synchronous_sgd_in_float32():
    one, other = (
        tree.flatten(run(algorithm, 8, dtype=torch.float32).variables.shared)
        for algorithm in (
            LocalSGD(lr=0.1, steps=1, batch_size=BATCH),
            FedSGD(lr=0.1, batch_size=BATCH, batches="onward", weights="uniform"),
        )
    )
    assert np.abs(one - other).max() <= 1e-6 * np.abs(one).max()


def test_fedavg_with_the_same_options_is_the_same_to_the_bit():
    one = LocalSGD(lr=0.1, steps=3, batch_size=BATCH)
    other = FedAvg(lr=0.1, steps=3, batch_size=BATCH, batches="onward", weights="uniform")
    assert wire.encode(run(one).state) == wire.encode(run(other).state)


def test_gossips_nodes_keep_their_optimisers_too():
    ours, theirs = MAKERS["adamw"]
    result = run(
        Gossip(
            topology="complete",
            lr=0.1,
            steps=3,
            batch_size=BATCH,
            batches="onward",
            optimizer=ours,
            keep_optimizer=True,
        )
    )
    close(result, by_hand(theirs, [3] * 5))


@pytest.mark.parametrize("engine", ["inline", "lanes"])
def test_what_is_kept_survives_a_resume(tmp_path, engine):
    algorithm = LocalSGD(lr=0.1, steps=3, batch_size=BATCH, optimizer="adamw", keep_optimizer=True)
    whole = run(algorithm, 6, ENGINES[engine])
    half = run(algorithm, 3, ENGINES[engine], store=tmp_path / "a.db")
    rest = run(algorithm, 6, ENGINES[engine], store=tmp_path / "a.db", resume=half.id)
    assert wire.encode(rest.state) == wire.encode(whole.state)
    assert wire.encode(dict(rest.memories)) == wire.encode(dict(whole.memories))


def test_simulated_time_counts_the_steps_of_the_round():
    algorithm = LocalSGD(lr=0.1, steps=5, batch_size=2, switch=2)
    assert [float(examples_of(algorithm, np.array([100.0]), round)[0]) for round in (1, 2, 3)] == [2, 2, 10]
    history = run(algorithm, 4, world=World(speed=1.0)).history
    assert [row["simulated_seconds"] for row in history] == [2, 2, 10, 10]


def test_batches_go_on_where_epochs_are_given():
    """Two epochs a round, each of the walk's: the rows of the second round are those of epochs 2 and 3."""
    a = FedAvg(lr=0.1, epochs=2, batch_size=BATCH, batches="onward")
    task = insitu.core.types.Task("run", 2, 1, "train", "1", {}, SEED)
    found = a.batches_(task, 7, pairs=False)
    expected = rows(1, 4, 4)
    assert [PARTS[1][found[s]].tolist() for s in range(len(found))] == [batch.tolist() for batch in expected]


def test_bad_arguments():
    with pytest.raises(PlanError, match="switch=-1"):
        LocalSGD(switch=-1)
    with pytest.raises(PlanError, match="batches='on'"):
        FedSGD(batches="on")
    with pytest.raises(PlanError, match="needs gradients"):
        insitu.Plan(LocalSGD(), learner=SklearnLearner(SGDClassifier(), classes=[0, 1]))
    with pytest.raises(PlanError, match="batches='onward' is a matter of gradients"):
        insitu.Plan(FedAvg(batches="onward"), learner=SklearnLearner(SGDClassifier(), classes=[0, 1]))
