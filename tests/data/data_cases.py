"""What clients from files have in common with the same data in memory."""

import numpy as np
import pytest

import insitu
from insitu.algorithms.fedavg import FedAvg


def same(one, other):
    assert list(one.ids) == list(other.ids)
    assert np.array_equal(one.schema().classes, other.schema().classes)
    assert one.schema().features == other.schema().features
    for a, b in zip(one, other, strict=True):
        for left, right in ((a.data, b.data), (a.holdout, b.holdout)):
            assert (left is None) == (right is None)
            if left is not None:
                assert left.x.dtype == right.x.dtype
                assert np.array_equal(left.x, right.x)
                assert np.array_equal(left.y, right.y)
                assert np.array_equal(left.rows, right.rows)


def equal_runs(one, other, engine):
    """Two rounds on either population give the same parameters, bit for bit."""
    torch = pytest.importorskip("torch")
    from insitu.learners.torch import TorchLearner

    torch.manual_seed(1)
    module = torch.nn.Linear(*one.schema().features, len(one.schema().classes))
    plan = insitu.Plan(FedAvg(lr=0.1, batch_size=4, epochs=2), TorchLearner(module), block=2)

    def trained(clients):
        result = insitu.run(plan, clients, rounds=2, engine=engine, seed=5)
        assert result.history[-1]["clients"] == len(clients)
        return result.variables.shared

    first, second = trained(one), trained(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
