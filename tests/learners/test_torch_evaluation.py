"""Evaluation in pieces and of many clients at once, against a plain forward pass by hand."""

from __future__ import annotations

import copy
import gc
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from insitu.core.types import Data
from insitu.learners.torch import TorchLearner, evaluation

RNG = np.random.default_rng(0)
N = 23


def data(n=N, dtype="float64", features=4):
    return Data(RNG.normal(size=(n, features)).astype(dtype), RNG.integers(0, 3, n))


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *(layers or (nn.Tanh(),)), nn.Linear(8, 3)).double()


def by_hand(module, data):
    """One forward pass over everything."""
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        output = module(torch.tensor(data.x))
        y = torch.tensor(data.y)
        loss = F.cross_entropy(output, y, reduction="sum")
        return {"examples": len(y), "loss": float(loss), "accuracy": float((output.argmax(1) == y).sum())}


class Overwrites(nn.Module):
    """Writes into its input, as nn.ReLU(inplace=True) does where it comes first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x.mul_(2))


class Centred(nn.Module):
    """Takes the mean of the batch off, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x - x.mean(0))


MODULES = {
    "plain": net,
    "dropout": lambda: net(nn.Tanh(), nn.Dropout(0.5)),
    "batch norm": lambda: net(nn.BatchNorm1d(8)),
    "overwrites": lambda: Overwrites().double(),
}


@pytest.fixture(params=[1, 5, 22, 23, 512])
def piece(request, monkeypatch):
    monkeypatch.setitem(evaluation.PIECE, "cpu", request.param)
    return request.param


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_pieces_add_up_to_one_forward_pass_whatever_their_size(make, piece):
    module, test = make(), data()
    learner = TorchLearner(module)
    for _ in range(2):  # the second time what was found out and kept is used
        assert learner.evaluate(learner.init(0), test) == pytest.approx(by_hand(module, test), rel=1e-12)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_the_callers_data_stay_as_they_are(make, piece):
    module, test = make(), data()
    before = test.x.copy()
    learner = TorchLearner(module)
    for _ in range(3):
        learner.evaluate(learner.init(0), test)
        learner.outputs(learner.init(0), test.x)
        learner.evaluate_many(learner.init(0), [test, Data(test.x[:4], test.y[:4])])
    np.testing.assert_array_equal(test.x, before)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("lengths", [[3], [1, 2, 3, 4, 5, 6, 7], [4, 0, 30, 0, 0, 2], [0], []], ids=str)
def test_many_clients_at_once_have_the_sums_of_each_alone(make, lengths, piece):
    module = make()
    learner = TorchLearner(module)
    parts = [data(n) for n in lengths]
    for _ in range(2):
        together = learner.evaluate_many(learner.init(0), parts)
        assert [sums["examples"] for sums in together] == lengths
        for sums, part in zip(together, parts, strict=True):
            assert sums == pytest.approx(learner.evaluate(learner.init(0), part), rel=1e-12)
            if len(part):
                assert sums == pytest.approx(by_hand(module, part), rel=1e-12)


@pytest.mark.parametrize("module", [Centred().double(), net(nn.BatchNorm1d(8, track_running_stats=False))])
def test_a_module_whose_examples_influence_each_other_gets_each_client_alone(module):
    learner = TorchLearner(module)
    parts = [data(n) for n in (5, 6, 7)]
    for _ in range(2):
        for sums, part in zip(learner.evaluate_many(learner.init(0), parts), parts, strict=True):
            assert sums == pytest.approx(by_hand(module, part), rel=1e-12)


def test_columns_of_several_types_and_forms_do_not_get_mixed():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 3)

        def forward(self, x):
            return self.head(x["a"].sum(1, keepdim=True) + x["b"].double().reshape(-1, 1))

    learner = TorchLearner(Sums().double())
    parts = [
        Data({"a": RNG.normal(size=(n, w)).astype(kind), "b": np.arange(n)}, RNG.integers(0, 3, n))
        for n, w, kind in [(3, 2, "f4"), (4, 5, "f8"), (5, 2, "f4"), (2, 5, "f8"), (2, 2, "f8")]
    ]
    together = learner.evaluate_many(learner.init(0), parts)
    for sums, part in zip(together, parts, strict=True):
        assert sums == pytest.approx(learner.evaluate(learner.init(0), part), rel=1e-12)


def test_the_test_set_is_converted_once_and_forgotten_with_it(monkeypatch):
    monkeypatch.setitem(evaluation.PIECE, "cpu", 10)
    learner, test = TorchLearner(net()), data()
    calls = []
    batch = learner.batch
    learner.batch = lambda d, where: calls.append(len(d)) or batch(d, where)
    for _ in range(3):
        learner.evaluate(learner.init(0), test)
        learner.evaluate(learner.init(0), data(4))
    assert calls == [N, 4, 4, 4]
    assert learner._evaluator._kept is not None
    del test
    gc.collect()
    assert learner._evaluator._kept is None


def test_data_too_large_to_be_kept_give_the_same(monkeypatch, piece):
    module, test = net(), data()
    monkeypatch.setattr(evaluation, "KEEP", 10)
    learner = TorchLearner(module)
    assert learner.evaluate(learner.init(0), test) == pytest.approx(by_hand(module, test), rel=1e-12)
    assert learner._evaluator._kept is None


def test_a_learner_travels_without_what_it_kept():
    learner, test = TorchLearner(net()), data(1100)
    expected = learner.evaluate(learner.init(0), test)
    for other in (pickle.loads(pickle.dumps(learner)), copy.deepcopy(learner)):
        assert other._evaluator._kept is None
        assert other._evaluator.module is other._module
        assert other.evaluate(other.init(0), test) == expected


def test_an_evaluation_leaves_training_as_it_was():
    """The module's own tensors and mode are put back, so that what follows is not an evaluation's model."""
    learner = TorchLearner(net(nn.Dropout(0.5)))
    other = TorchLearner(net(nn.ReLU())).init(0)
    before = copy.deepcopy(learner._module.state_dict())
    learner.evaluate(other, data())
    for name, tensor in learner._module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
