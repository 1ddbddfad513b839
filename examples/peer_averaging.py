"""Nodes exchange parameters with their neighbours until they agree; nobody is in charge.

Every node fits its own data once. From then on a round is a mean over neighbours, and what the nodes disagree on
shrinks by the second largest eigenvalue of the mixing matrix each round: slowly on a ring, at once where all know all.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes

import insitu
from insitu.algorithms.gossip import Gossip
from insitu.data import Clients
from insitu.data.partition import iid
from insitu.learners.estimator import EstimatorLearner
from insitu.reduce.neighbours import TOPOLOGIES, mixing


class FitOnce:
    """Least squares that is fitted where it has no parameters yet, and otherwise keeps what it was given."""

    def __init__(self):
        self.weight = None

    def fit(self, x, y):
        if self.weight is None:
            self.weight = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
        return self

    def predict(self, x):
        return np.c_[x, np.ones(len(x))] @ self.weight

    def get_params(self):
        return {} if self.weight is None else {"weight": self.weight}

    def set_params(self, params):
        self.weight = params["weight"]


def second_eigenvalue(topology, nodes):
    """By how much a round of mixing shrinks the nodes' disagreement, in the long run."""
    matrix = np.zeros((nodes, nodes))
    for i, row in enumerate(mixing(topology, nodes)):
        matrix[i, list(row)] = list(row.values())
    return float(np.sort(np.abs(np.linalg.eigvalsh(matrix)))[-2])


def main(nodes=16, rounds=40, picture="peer_averaging.png"):
    x, y = load_diabetes(return_X_y=True)
    clients = Clients.from_arrays(x, y, iid(len(x), nodes, seed=0))
    found = {}
    for topology in TOPOLOGIES:
        plan = insitu.Plan(Gossip(topology=topology), learner=EstimatorLearner(FitOnce()))
        result = insitu.run(plan, clients, rounds=rounds, engine="inline", store=None, observers=())
        _, found[topology] = result.history.column("disagreement")
        steps = np.array(found[topology])
        shrunk = (steps[20] / steps[10]) ** 0.1 if steps[20] > 1e-9 else 0.0
        print(
            f"{topology:12s} disagreement {steps[0]:9.3f} after round 1, {steps[-1]:.2e} after round {rounds};"
            f" a round keeps {shrunk:.3f} of it, the second eigenvalue is {second_eigenvalue(topology, nodes):.3f}"
        )
    if picture:
        draw(found, picture)
    return found


def draw(found, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="round", ylabel="distance of the nodes from their mean", yscale="log", ylim=(1e-8, None)
    )
    for topology, values in found.items():
        axes.plot(range(1, len(values) + 1), np.maximum(values, 1e-12), label=topology)
    axes.legend(title="topology")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    print(f"picture: {Path(path)}")


if __name__ == "__main__":
    main(picture=sys.argv[1] if len(sys.argv) > 1 else "peer_averaging.png")
