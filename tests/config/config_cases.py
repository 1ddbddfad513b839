"""A configuration and code of a user's that the tests start from, and what they ask of both."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from insitu.config import load
from insitu.core.errors import ConfigError

FILE = """
[run]
rounds = 3
store = false

[data]
source = "digits"
partition = { name = "dirichlet", clients = 10, alpha = 0.5 }
holdout = 0.2
test = 0.2

[learner]
name = "logistic"

[algorithm]
name = "fedavg"
"""
CODE = """
import numpy as np
from insitu.data import Clients, DataSet

def arrays(n: int = 60, **more):
    random = np.random.default_rng(0)
    return random.normal(size=(n, 3)), random.integers(0, 3, n)

def named():
    x, y = arrays()
    return x, np.array(["a", "b", "c"])[y]

def keyed(hospitals: int = 4):
    x, y = arrays()
    return DataSet("own", x, y, keys=np.arange(60) % hospitals)

def clients():
    x, y = arrays()
    return Clients.from_arrays(x, y, [range(30), range(30, 60)])

def unlabelled():
    return arrays()[0], None

def wrong():
    return {"x": 1}

def broken(n=3):
    ratio = n / 0
    return ratio

number = 7
"""


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x):
        return self.layers(x)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Linear(3)

def loss(output, y):
    return nn.functional.cross_entropy(output, y, reduction="none")
"""


needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")


def plan_of(folder, *changes):
    return load(folder / "insitu.toml", changes).plan()


def error_of(folder, *changes, kind=ConfigError):
    with pytest.raises(kind) as caught:
        load(folder / "insitu.toml", changes).build()
    return str(caught.value)


def population_of(folder, *changes):
    return load(folder / "insitu.toml", changes).population()
