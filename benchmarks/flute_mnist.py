"""The setting that FLUTE's README publishes: logistic regression on MNIST, 1000 clients, 10 a round, 100 rounds.

Batches of 10, SGD with 0.03, one epoch, test every 20 rounds. Published there, on its authors' machine: Flower 30 min
14 s, FLUTE 3 min 20 s. Their clients are cut by a power law; ours are 1000 half-writers: the digits of each of MNIST's
539 writers in two parts, the first 1000 of those. Without MNIST's files it takes scikit-learn's 8 × 8 digits, enlarged
and repeated with noise, and says so: the time is then comparable, the accuracy is not.

    python benchmarks/flute_mnist.py [--rounds 100] [--engine vectorized]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.bench import machine
from insitu.core.errors import DataError
from insitu.data.clients import Clients
from insitu.data.mnist import mnist
from insitu.learners.torch import TorchLearner

CLIENTS, COHORT = 1000, 10


def main() -> None:
    """Trains, and prints seconds and accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--engine", default=None)
    given = parser.parse_args()
    source, x, y, parts, test = data()
    clients = Clients.from_arrays(x, y, parts)
    torch.manual_seed(0)
    plan = insitu.Plan(
        FedAvg(lr=0.03, batch_size=10),
        learner=TorchLearner(nn.Linear(x.shape[1], 10)),
        cohort=insitu.Uniform(COHORT),
        evaluate_every=20,
    )
    began, cpu = time.perf_counter(), time.process_time()
    result = insitu.run(plan, clients, rounds=given.rounds, engine=given.engine, evaluate=test, store=None)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(machine.sentence(machine.describe()))
    print(f"{source}; {len(clients)} clients, {COHORT} a round, {given.rounds} rounds; {result.choices}")
    print(f"{wall:.2f} s wall, {cpu:.2f} s CPU of this process; accuracy {result.history[-1]['accuracy']:.4f}")


def data() -> tuple[str, np.ndarray, np.ndarray, list[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Where the data are from, x [n, 784], y [n], the rows of each of 1000 clients, and the test set."""
    try:
        digits = mnist()
    except DataError:
        return small_digits()
    order = np.argsort(digits.keys, kind="stable")
    starts = np.flatnonzero(np.diff(digits.keys[order], prepend=-1))
    parts = [half for rows in np.split(order, starts[1:]) for half in np.array_split(rows, 2)]
    return "MNIST by half-writer", digits.x, digits.y, parts[:CLIENTS], (digits.x_test, digits.y_test)


def small_digits() -> tuple[str, np.ndarray, np.ndarray, list[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The same shapes out of scikit-learn's digits: each pixel as 3 × 3 with a margin, each image 40 times."""
    from insitu.data.sets import load

    digits = load("digits")
    images = np.pad(digits.x.reshape(-1, 8, 8).repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))
    images = (images / images.max()).reshape(len(images), 784).astype(np.float32)
    generator = np.random.default_rng(0)
    order = generator.permutation(len(images))
    test, train = order[:300], np.tile(order[300:], 40)
    x = images[train] + 0.1 * generator.standard_normal((len(train), 784), dtype=np.float32)
    parts = np.array_split(generator.permutation(len(train)), CLIENTS)
    return "scikit-learn's digits, enlarged", x, digits.y[train], parts, (images[test], digits.y[test])


if __name__ == "__main__":
    main()
