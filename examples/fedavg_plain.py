"""FedAvg as one writes it by hand in PyTorch, and the same by insitu: the same answer."""

import copy

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core.batches import batches
from insitu.data import Clients
from insitu.data.partition import dirichlet
from insitu.learners.torch import TorchLearner

ROUNDS, COHORT, LR, SEED = 5, insitu.Uniform(10), 0.1, 0


def by_hand(net, x, y, parts):
    x, y, net = torch.from_numpy(x), torch.from_numpy(y), copy.deepcopy(net)
    for round in range(1, ROUNDS + 1):
        total, seen = [torch.zeros_like(p) for p in net.parameters()], 0
        for client in COHORT.sample(len(parts), SEED, round):
            rows, local = torch.from_numpy(parts[client]), copy.deepcopy(net)
            optimizer = torch.optim.SGD(local.parameters(), lr=LR)
            # The order of a client's examples, from the same seeds as insitu's.
            for batch in batches(len(rows), 10, 1, None, seed=SEED, round=round, client=str(client)):
                optimizer.zero_grad()
                nn.functional.cross_entropy(local(x[rows[batch]]), y[rows[batch]]).backward()
                optimizer.step()
            for t, new, old in zip(total, local.parameters(), net.parameters(), strict=True):
                t += len(rows) * (new - old).detach()
            seen += len(rows)
        with torch.no_grad():
            for p, t in zip(net.parameters(), total, strict=True):
                p += t / seen
    return np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])


def by_insitu(net, x, y, parts):
    plan = insitu.Plan(FedAvg(lr=LR, epochs=1, batch_size=10), learner=TorchLearner(net), cohort=COHORT)
    result = insitu.run(plan, Clients.from_arrays(x, y, parts), rounds=ROUNDS, seed=SEED, store=None, observers=())
    return np.concatenate([p.ravel() for p in result.params.values()])


def main(dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(dtype)
    x, y = load_digits(return_X_y=True)
    x, parts = (x / 16).astype(str(dtype).removeprefix("torch.")), dirichlet(y, 50, alpha=0.3, seed=0)
    plain, ours = by_hand(net, x, y, parts), by_insitu(net, x, y, parts)
    print(f"{dtype}: largest relative difference {np.abs(plain - ours).max() / np.abs(plain).max():.1e}")
    return plain, ours


if __name__ == "__main__":
    main(torch.float64)
    main(torch.float32)
