"""Accuracy against bytes: the README's run on handwritten digits, with each compressor in turn. Prints the table of
docs/compression.md.

    python benchmarks/compression.py            # three seeds, two or three minutes
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import insitu
from insitu.algorithms.choco import Choco
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.gossip import Gossip
from insitu.compress.half import Half
from insitu.compress.powersgd import PowerSGD
from insitu.compress.quantize import Quantize
from insitu.compress.randomk import RandomK
from insitu.compress.signs import Signs
from insitu.compress.topk import TopK
from insitu.data import Clients
from insitu.data.partition import dirichlet
from insitu.learners.torch import TorchLearner

SEEDS = (0, 1, 2)
FEDERATED = {
    "none": (),
    "`Half()`": (Half(),),
    "`Quantize(8)`": (Quantize(8),),
    "`Quantize(4)`": (Quantize(4),),
    "`Signs()`": (Signs(),),
    "`Signs(feedback=False)`": (Signs(feedback=False),),
    "`PowerSGD(1)`": (PowerSGD(1),),
    "`PowerSGD(2)`": (PowerSGD(2),),
    "`TopK(0.05)`": (TopK(0.05),),
    "`TopK(0.01)`": (TopK(0.01),),
    "`TopK(0.01, feedback=False)`": (TopK(0.01, feedback=False),),
    "`TopK(0.05)`, `Quantize(8)`": (TopK(0.05), Quantize(8)),
    "`RandomK(0.05)`": (RandomK(0.05),),
}
AMONG_NEIGHBOURS = {
    "`Gossip`, none": (Gossip, {}, ()),
    "`Gossip`, `Quantize(8)`": (Gossip, {}, (Quantize(8),)),
    "`Choco(gamma=1)`, `Quantize(4)`": (Choco, {"gamma": 1.0}, (Quantize(4),)),
    "`Choco(gamma=0.5)`, `Signs`": (Choco, {"gamma": 0.5}, (Signs(feedback=False),)),
    "`Choco(gamma=0.5)`, `PowerSGD(1)`": (Choco, {"gamma": 0.5}, (PowerSGD(1, feedback=False),)),
    "`Choco(gamma=0.3)`, `TopK(0.05)`": (Choco, {"gamma": 0.3}, (TopK(0.05, feedback=False),)),
}

X, Y = load_digits(return_X_y=True)
X, X_TEST, Y, Y_TEST = train_test_split(X / 16, Y, test_size=0.2, random_state=0)


def learner() -> TorchLearner:
    torch.manual_seed(0)
    return TorchLearner(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))


def line(name: str, make, clients: Clients, rounds: int) -> None:
    """One row: bytes of one client's update in one round, and the accuracy after the last, by seed."""
    accuracy, each = [], 0.0
    for seed in SEEDS:
        result = insitu.run(
            make(), clients, rounds=rounds, seed=seed, evaluate=(X_TEST, Y_TEST), store=None, observers=[],
            engine="vectorized",
        )  # fmt: skip
        accuracy.append(result.history[-1]["accuracy"])
        each = result.history[-1]["bytes_up"] / result.history[-1]["clients"]
    found = ", ".join(f"{a:.3f}" for a in accuracy)
    print(f"| {name} | {each:,.0f} | {np.mean(accuracy):.3f} ({found}) |", flush=True)


def main() -> None:
    """Both tables."""
    writers = Clients.from_arrays(X, Y, dirichlet(Y, 100, alpha=0.3, seed=0))
    for name, stages in FEDERATED.items():
        line(
            name,
            lambda stages=stages: insitu.Plan(
                FedAvg(lr=0.3, epochs=2, batch_size=10), learner(), stages, cohort=insitu.Uniform(20), evaluate_every=50
            ),
            writers,
            50,
        )
    nodes = Clients.from_arrays(X, Y, dirichlet(Y, 16, alpha=0.3, seed=0))
    for name, (method, options, stages) in AMONG_NEIGHBOURS.items():
        line(
            name,
            lambda method=method, options=options, stages=stages: insitu.Plan(
                method(lr=0.3, epochs=1, batch_size=10, topology="ring", **options),
                learner(),
                stages,
                evaluate_every=50,
            ),
            nodes,
            50,
        )


if __name__ == "__main__":
    main()
