"""Small models, ragged clients and engines for the contract tests: what exists is found on disk, never listed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from torch import nn

import insitu
from insitu.core import tree
from insitu.core.types import Data
from insitu.data.clients import Clients
from insitu.learners.torch import TorchLearner
from insitu.names import find, members

SIZES = (3, 1, 9, 5, 6, 2, 11, 4)
"""Examples by client: one has a single example, several fewer than a batch; clients 3 and 4 know one class only."""
BATCH = 4
CLASSES = 3


def module(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A module of this name with the same weights every time. Classes are local, so they travel by value."""

    class Lstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 5)
            self.lstm = nn.LSTM(5, 4, num_layers=2, dropout=0.25, batch_first=True)
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.head(self.lstm(self.embed(x))[0][:, -1])

    makers = {
        "logistic": lambda: nn.Linear(6, CLASSES),
        "perceptron": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES)),
        "cnn": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2),
            nn.Flatten(), nn.Linear(12, CLASSES),
        ),
        "lstm": Lstm,
        "batchnorm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return makers[name]().to(dtype)


MODELS = ("logistic", "perceptron", "cnn", "lstm")


def learner(name: str, dtype: torch.dtype = torch.float64) -> TorchLearner:
    return TorchLearner(module(name, dtype))


def arrays(name: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x and labels that a model of this name takes."""
    rng = np.random.default_rng(seed)
    if name == "lstm":
        x = rng.integers(0, 7, (n, 2))
        return x, (x.sum(axis=1) % CLASSES).astype(np.int64)
    x = rng.normal(size=(n, 36 if name == "cnn" else 6))
    return x, np.digitize(x[:, 0] + x[:, 1], [-0.6, 0.6])


def ragged(name: str, sizes: tuple[int, ...] | None = None, holdout: float = 0.0) -> Clients:
    """Clients of very different sizes, two of which know one class only."""
    # A step of an LSTM costs ten times one of the others, so its clients are smaller.
    sizes = sizes or (tuple(-(-size // 2) for size in SIZES) if name == "lstm" else SIZES)
    x, y = arrays(name, sum(sizes))
    ends = np.cumsum(sizes)
    parts = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    for place, label in ((3, 0), (4, 2)):
        if place < len(parts):
            y[parts[place]] = label
    return Clients.from_arrays(x, y, parts, holdout=holdout)


def train(plan: insitu.Plan, clients: Any, engine: Any, rounds: int = 5, seed: int = 11, **more: Any) -> insitu.Result:
    """A run without a store and without a word."""
    return insitu.run(plan, clients, rounds=rounds, engine=engine, seed=seed, store=None, observers=[], **more)


def flat(result: insitu.Result) -> np.ndarray:
    """Everything that travels, as one vector."""
    return tree.flatten({"shared": result.variables.shared, "buffers": result.variables.buffers})


def far(a: np.ndarray, b: np.ndarray) -> float:
    """max|a-b| / max|a|."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(a).max())


def algorithm_classes() -> list[Any]:
    return [find("algorithms", name) for name in members("algorithms")]


def descents() -> list[Any]:
    """The algorithms that train models by gradients."""
    return [cls for cls in algorithm_classes() if cls.learner_needed != "none"]


@functools.cache
def engines() -> dict[str, Any]:
    """Every engine found on disk, each in the shapes in which its answer must be the same."""
    found: dict[str, Any] = {}
    for name in members("engines"):
        if name == "https":
            continue  # runs inside a coordinator: tests/federation has the same contract with real sites
        cls = find("engines", name)
        fields = {f.name for f in dataclasses.fields(cls)}
        if name == "vectorized":
            for lanes in (1, 3, 16):
                found[f"{name}-{lanes}"] = cls(lanes=lanes, compile=False, device="cpu")
        elif "workers" in fields:
            for workers in (1, 2, 3):
                found[f"{name}-{workers}"] = cls(workers=workers)
        elif name == "spmd":
            found[name] = cls(lanes=3, compile=False)  # one rank alone; test_spmd.py starts several
        else:
            found[name] = cls()
    return found


def in_process() -> list[str]:
    """The engines that start no processes: cheap enough for every combination."""
    return [name for name in engines() if not name.startswith("processes")]


def worker_engines() -> list[str]:
    return [name for name in engines() if name.startswith("processes")]


def table(n: int = 24, d: int = 3, seed: int = 1) -> Data:
    """Three clouds of points with their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return Data(rng.normal(size=(n, d)) + 4.0 * y[:, None], y, np.arange(n))
