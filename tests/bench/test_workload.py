"""The workload is the one that is specified, and peers can load it without insitu."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from insitu.bench import floor, models, workload
from insitu.core.errors import PlanError

FILE = Path(workload.__file__)


def test_sizes_are_the_ones_that_are_specified():
    expected = np.clip(np.round(np.random.default_rng(0).lognormal(math.log(50), 0.8, 1000)), 10, 400)
    assert np.array_equal(workload.sizes(), expected)
    assert workload.sizes().min() == 10
    assert workload.sizes().max() == 400


def test_clients_have_their_sizes_and_a_linear_teacher():
    data = workload.features(30)
    assert [len(data.client(i)[1]) for i in range(len(data))] == workload.sizes(30).tolist()
    assert data.x.dtype == np.float32
    assert data.x.shape == (workload.sizes(30).sum(), 784)
    assert set(data.y) == set(range(10))
    # A linear teacher can be found again: least squares on one-hot labels does far better than chance.
    found, *_ = np.linalg.lstsq(data.x, np.eye(10)[data.y], rcond=None)
    assert ((data.x @ found).argmax(1) == data.y).mean() > 0.5


def test_a_step_is_a_batch_of_ten_the_last_one_partial():
    data = workload.features(5)
    assert data.steps(np.arange(5)) == sum(math.ceil(n / 10) for n in workload.sizes(5))


@pytest.mark.parametrize(("name", "parameters"), [("lr", 7_850), ("mlp", 199_210), ("cnn", 1_663_370)])
def test_models_have_as_many_parameters_as_is_said(name, parameters):
    assert sum(p.numel() for p in models.make(name).parameters()) == parameters
    assert floor.COUNTS[name].parameters == parameters


def test_the_floor_counts_the_lstm_that_is_made():
    assert sum(p.numel() for p in models.make("lstm").parameters()) == floor.COUNTS["lstm"].parameters


def test_operations_of_logistic_regression_by_hand():
    # Forward 10 × 784 → 10 and the weight's gradient; the first layer needs no gradient of its input.
    assert floor.COUNTS["lr"].operations() == 2 * (2 * 10 * 784 * 10)


@pytest.mark.parametrize("name", models.MODELS)
def test_models_take_their_data_and_are_the_same_every_time(name):
    data = models.data(name, 4, 2)
    x, _ = data.client(0)
    first, second = models.make(name)(torch.from_numpy(x)), models.make(name)(torch.from_numpy(x))
    assert first.shape == (len(x), workload.LETTERS if name == "lstm" else 10)
    assert torch.equal(first, second)


def test_an_unknown_model_is_named():
    with pytest.raises(PlanError, match="no model 'rnn': there are lr, mlp, cnn, lstm"):
        models.make("rnn")


def test_letters_are_cut_at_the_largest_client():
    n = workload.LARGEST + 30
    keys = np.array(["b"] * n + ["a"] * 7)
    x = np.arange(n + 7)[:, None].repeat(workload.LENGTH, 1)
    data = workload.letters(x, x[:, 0], keys)
    assert np.diff(data.starts).tolist() == [7, workload.LARGEST]
    assert data.client(0)[1].tolist() == list(range(n, n + 7))
    assert data.client(1)[1].tolist() == list(range(workload.LARGEST))


def test_peers_load_the_file_without_insitu():
    program = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('workload', {str(FILE)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['workload'] = module\n"
        "spec.loader.exec_module(module)\n"
        "print(len(module.features(3)), any(name.split('.')[0] in ('insitu', 'torch') for name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3", "False"], done.stderr
