"""Where lanes read examples: from all data in one piece where that is no second copy, else client by client."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core.types import Data
from insitu.data.clients import Clients
from insitu.engines.vectorized import Vectorized, examples
from insitu.engines.vectorized.examples import in_one_piece
from insitu.learners.torch import TorchLearner

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
PARTS = np.split(RNG.permutation(60), [7, 20, 24, 41])
CPU = torch.device("cpu")


def learner():
    torch.manual_seed(0)
    return TorchLearner(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)))


def test_columns_that_need_no_copy_share_memory_with_the_data():
    columns = in_one_piece(Data(X, Y), learner(), CPU).columns
    assert np.shares_memory(columns["x"].numpy(), X)
    assert np.shares_memory(columns["y"].numpy(), Y)


@pytest.mark.parametrize(
    "data",
    [Data(X.astype(np.float64), Y), Data(X, Y.astype(np.uint8)), Data(X[:, ::-1], Y), Data(X[::2], Y[::2])],
    ids=["double", "bytes", "reversed", "every other"],
)
def test_others_are_copied_while_they_are_few(data, monkeypatch):
    found = in_one_piece(data, learner(), CPU)
    np.testing.assert_allclose(found.columns["x"].numpy(), data.x, rtol=1e-6)
    assert found.columns["y"].tolist() == data.y.tolist()
    monkeypatch.setattr(examples, "COPY", 100)
    assert in_one_piece(data, learner(), CPU) is None


def test_read_only_arrays_count_as_copies(monkeypatch):
    monkeypatch.setattr(examples, "COPY", 100)
    still = X.copy()
    still.flags.writeable = False
    assert in_one_piece(Data(still, Y), learner(), CPU) is None


def test_there_may_be_no_piece():
    assert in_one_piece(None, learner(), CPU) is None


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_answer_has_the_same_bits_from_one_piece_and_from_many(epochs, monkeypatch):
    def run():
        clients = Clients.from_arrays(X, Y, PARTS, holdout=0.2)
        plan = insitu.Plan(FedAvg(lr=0.2, epochs=epochs, batch_size=4), learner=learner())
        return insitu.run(plan, clients, rounds=3, engine=Vectorized(lanes=3), store=None, observers=[])

    pieces = []
    whole = Clients.whole
    monkeypatch.setattr(Clients, "whole", lambda self: pieces.append(whole(self)) or pieces[-1])
    one = run()
    assert pieces[0] is not None
    monkeypatch.setattr(Clients, "whole", lambda self: None)
    many = run()
    for name, value in one.variables.shared.items():
        assert torch.equal(value, many.variables.shared[name])
    for a, b in zip(one.history, many.history, strict=True):
        assert a["train_loss"] == b["train_loss"]


def test_labels_out_of_range_cost_their_client_alone():
    y = Y.copy()
    y[PARTS[2]] = 7
    clients = Clients.from_arrays(X, y, PARTS)
    plan = insitu.Plan(FedAvg(lr=0.2, batch_size=4), learner=learner(), evaluate_every=0)
    heard = []
    result = insitu.run(plan, clients, rounds=2, engine=Vectorized(lanes=5), store=None, observers=[heard.append])
    failed = [event for event in heard if type(event).__name__ == "ClientFailed"]
    assert {event.client for event in failed} == {"2"}
    assert len(failed) == 2
    assert "labels go from 7 to 7" in failed[0].error
    assert [row["clients"] for row in result.history] == [4, 4]
