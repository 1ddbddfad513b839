"""A round's memory does not grow with its cohort: it is that of the lanes and one sum."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

CODE = """
import resource, sys
import numpy as np, torch
import insitu
from insitu.algorithms.{module} import {cls}
from insitu.data.clients import Clients
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner

def load(i):
    rng = np.random.default_rng(i)
    return rng.normal(size=(5, 784)).astype("float32"), rng.integers(0, 10, 5)

torch.manual_seed(0)
net = {net}
plan = insitu.Plan(
    {cls}({arguments}), learner=TorchLearner(net), evaluate_every=0, block={block}, cohort=insitu.Uniform({cohort})
)
clients = Clients.lazy(range(20_000), load)
result = insitu.run(plan, clients, rounds=1, engine=Vectorized(lanes=8, compile=False, device="cpu"), store=None,
                    observers=[])
assert result.history[0]["clients"] == {cohort}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
LOGISTIC = "torch.nn.Linear(784, 10)"
PERCEPTRON = "torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))"


def peak(cohort, module="fedavg", cls="FedAvg", net=LOGISTIC, block=32, arguments="lr=0.1, batch_size=5") -> float:
    """Megabytes at the most."""
    code = textwrap.dedent(CODE).format(
        cohort=cohort, module=module, cls=cls, net=net, block=block, arguments=arguments
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    return int(out.stdout.split()[-1]) / 1024


@pytest.mark.long
def test_ten_thousand_clients_need_the_memory_of_a_hundred():
    few, many = peak(100), peak(10_000)
    assert many < 1.1 * few


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_block_is_not_held_as_so_many_models(optimizer):
    """Eight lanes: a block of 256 must not hold 256 optimiser states of a model (0.8 MB here, twice)."""
    arguments = f"lr=0.01, batch_size=5, optimizer={optimizer!r}"
    small = peak(256, net=PERCEPTRON, block=8, arguments=arguments)
    large = peak(256, net=PERCEPTRON, block=256, arguments=arguments)
    assert large < small + 40
