"""Four workers with unequal shards of a small problem, and loops over ``torch.optim`` to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import insitu
from insitu.core.batches import onward
from insitu.data.clients import Clients
from insitu.learners.torch import TorchLearner

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 5))
Y = np.digitize(X[:, 0] - X[:, 1], [-0.7, 0.7])
PARTS = [np.arange(0, 14), np.arange(14, 21), np.arange(21, 37), np.arange(37, 48)]
BATCH, SEED = 4, 4


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def run(algorithm: Any, rounds: int = 5, engine: Any = "inline", dtype: Any = torch.float64, **more: Any) -> Any:
    named = {name: more.pop(name) for name in ("store", "resume") if name in more}
    plan = insitu.Plan(algorithm, learner=TorchLearner(net(dtype)), **more)
    clients = Clients.from_arrays(X.astype(np.float64), Y, PARTS)
    options = {"seed": SEED, "store": None, "observers": [], **named}
    return insitu.run(plan, clients, rounds=rounds, engine=engine, **options)


def flat(module: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in module.parameters()])


def put(module: nn.Module, vector: np.ndarray) -> None:
    nn.utils.vector_to_parameters(torch.from_numpy(vector.copy()), module.parameters())


def rows(worker: int, first: int, steps: int) -> list[np.ndarray]:
    """The examples of each of these steps of a worker's walk."""
    made = onward(len(PARTS[worker]), BATCH, first, steps, seed=SEED, client=str(worker))
    return [PARTS[worker][made[s]] for s in range(steps)]


class Workers:
    """Modules with optimisers of their own, which live on from round to round."""

    def __init__(self, make: Callable[[Iterable[Any]], torch.optim.Optimizer]) -> None:
        self.modules = [net() for _ in PARTS]
        self.optimizers = [make(module.parameters()) for module in self.modules]
        self.walked = 0

    def steps(self, count: int) -> None:
        """So many steps of every worker, each on its own batches."""
        for i, (module, optimizer) in enumerate(zip(self.modules, self.optimizers, strict=True)):
            for batch in rows(i, self.walked, count):
                optimizer.zero_grad()
                F.cross_entropy(module(torch.from_numpy(X[batch])), torch.from_numpy(Y[batch])).backward()
                optimizer.step()
        self.walked += count

    def mean(self) -> np.ndarray:
        return np.mean([flat(module) for module in self.modules], axis=0)

    def set(self, vector: np.ndarray) -> None:
        for module in self.modules:
            put(module, vector)


def close(result: Any, expected: np.ndarray, tolerance: float = 1e-11) -> None:
    from insitu.core import tree

    found = tree.flatten(result.variables.shared)
    assert np.abs(found - expected).max() / np.abs(expected).max() < tolerance
    assert np.abs(found - flat(net())).max() > 1e-2  # something was learnt
