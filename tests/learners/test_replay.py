"""Stretches that are recorded and replayed: the same bits as those that are run, whatever changes between them.

No GPU is needed: :class:`Again` has its protocol (copied in, replayed on the memory of the recording), not its kernels.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_chain import COUNTS, FLAT, LR, MODULES, batch_of, built, made, stacked
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.data import Clients
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner
from insitu.learners.torch.chain import replay
from insitu.learners.torch.losses import mse


@pytest.fixture
def made_of(monkeypatch):
    """Recordings on the CPU: how many were made."""
    found = []

    def record(work):
        found.append(work)
        return replay.Again(work)

    monkeypatch.setitem(replay.RECORDERS, "cpu", record)
    return found


def descended(chain, held, batch, counts=COUNTS, lr=LR):
    sums = {name: value.clone() for name, value in chain.descend(held, batch, counts, lr).items()}
    return {name: value.clone() for name, value in held.items()}, sums


def alike(one, other):
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", MODULES)
def test_replayed_stretches_have_the_same_bits(name, monkeypatch, made_of):
    shape, make = MODULES[name]
    module = made(make)
    recorded, plain = built(module, shape), built(module, shape)
    held, other = stacked(module), stacked(module)
    for seed in range(5):  # other examples each time, in other memory; the parameters go on from where they are
        batch = batch_of(shape, seed=seed)
        mine = descended(recorded, held, batch)
        with monkeypatch.context() as patch:
            patch.delitem(replay.RECORDERS, "cpu")
            alike(mine, descended(plain, other, batch))
    assert len(made_of) == 1


def test_whatever_a_recording_was_made_for_makes_another(made_of):
    module = made(MODULES["a perceptron"][1])
    chain, plain = built(module, FLAT), built(module, FLAT)
    held, elsewhere = stacked(module), stacked(module)
    batch = batch_of(FLAT)
    for parameters, counts, lr in (
        (held, COUNTS, LR),
        (held, COUNTS, LR / 2),
        (held, [3, 3, 3], LR),
        (elsewhere, COUNTS, LR),
    ):
        some = {column: value[: sum(counts)] for column, value in batch.items()}
        for _ in range(3):
            other = {name: value.clone() for name, value in parameters.items()}
            found = descended(chain, parameters, some, counts, lr)
            alike(found, (other, plain._steps(other, some, counts, lr, replay.Memory())))
    assert len(made_of) == 4


def test_no_more_recordings_are_kept_than_have_room(made_of, monkeypatch):
    monkeypatch.setattr(replay, "KEPT", 2)
    monkeypatch.setattr(replay, "SEEN", 5)
    module = made(MODULES["one layer"][1])
    chain, held, batch = built(module, FLAT), stacked(module), batch_of(FLAT)
    rates = [0.1, 0.2, 0.3]
    for lr in [*rates, *rates, *rates]:
        chain.descend(held, batch, COUNTS, lr)
    assert len(chain._replays._kept) == 2
    assert len(made_of) > 3  # one that was let go is made again
    for lr in np.linspace(1e-3, 2e-3, 20):
        chain.descend(held, batch, COUNTS, float(lr))
    assert len(chain._replays._seen) == 5


def test_what_cannot_be_recorded_is_run(monkeypatch):
    calls = []

    def record(work):
        calls.append(work)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(replay.RECORDERS, "cpu", record)
    module = made(MODULES["a perceptron"][1])
    chain, plain = built(module, FLAT, mse, {}), built(module, FLAT, mse, {})
    batch = batch_of(FLAT, lambda rows, generator: torch.randn(rows, 4, 3, generator=generator, dtype=torch.float64))
    held, other = stacked(module), stacked(module)
    for _ in range(4):
        found = descended(chain, held, batch)
        alike(found, (other, plain._steps(other, batch, COUNTS, LR, replay.Memory())))
    assert len(calls) == 1


SIZES = [5, 31, 8, 17, 3, 22, 40, 9, 12]


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("lanes", [3, 4])
def test_a_run_that_is_replayed_has_the_bits_of_one_that_is_not(made_of, monkeypatch, tmp_path, lanes, from_file):
    """Clients of all lengths: with recordings, whoever has finished stays in its lane until the wave is over."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(sum(SIZES), 6)).astype(np.float32), rng.integers(0, 3, sum(SIZES))
    if from_file:
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    clients = Clients.from_arrays(x, y, np.split(np.arange(len(y)), np.cumsum(SIZES)[:-1]))
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def run():
        plan = insitu.Plan(FedAvg(lr=0.1, batch_size=4, epochs=2), TorchLearner(net))
        engine = Vectorized(lanes=lanes, device="cpu")
        return insitu.run(plan, clients, rounds=3, engine=engine, seed=2, store=None, observers=[])

    mine = run()
    assert made_of
    with monkeypatch.context() as patch:
        patch.delitem(replay.RECORDERS, "cpu")
        other = run()
    assert all(torch.equal(mine.variables.shared[name], value) for name, value in other.variables.shared.items())
    for one, two in zip(mine.history, other.history, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-6)
        assert one["clients"] == two["clients"] == len(SIZES)
