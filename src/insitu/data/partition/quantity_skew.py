"""Clients of unequal size, alike in all else."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.core.seeds import generator
from insitu.data.arguments import enough, number_of_examples, whole
from insitu.data.shares import cut, deal, settle


def quantity_skew(
    labels_or_n: Any,
    clients: int,
    sigma: float | None = None,
    seed: int = 0,
    least: int = 1,
    *,
    alpha: float | None = None,
) -> list[np.ndarray]:
    """Draws clients' shares of the examples, log-normal or Dirichlet, and deals examples at random.

    With sigma, client i's share is ``exp(sigma · z_i) / Σ_j exp(sigma · z_j)``, z standard normal; with
    alpha, the shares are ``~ Dirichlet(alpha, …, alpha)``. Clients below ``least`` are treated as in
    :func:`insitu.data.partition.dirichlet`.

    Args:
        labels_or_n: labels [n], of which only the number counts, or n.
        clients: how many clients.
        sigma: the spread, >= 0 (1.0 where neither is given): 0 is equal sizes; at 1 the largest of 100
            clients has about 12 times the median, at 2 about 150 times.
        seed: a whole number; the same seed gives the same partition.
        least: how many examples every client must get.
        alpha: the concentration of a Dirichlet in place of sigma, > 0; small is uneven.

    Returns:
        For each client its examples' numbers, int64, ascending.

    Raises:
        PlanError: an argument is out of range, both sigma and alpha are given, or there are fewer than
            ``clients · least`` examples.

    Source: Li et al. (2022), "Federated learning on non-IID data silos: an experimental study"
    (Dirichlet sizes); log-normal sizes as in the synthetic data of the code of Li et al. (2020), "Federated
    optimization in heterogeneous networks".
    """
    n = number_of_examples(labels_or_n)
    clients, least = enough(n, clients, least)
    if sigma is not None and alpha is not None:
        raise PlanError(f"Expected one of sigma={sigma!r} and alpha={alpha!r}, not both: leave one out")
    random = generator(whole(seed=seed), 0, "", "partition quantity_skew")
    table = settle(lambda: cut(np.array([n]), _shares(random, clients, sigma, alpha)[None]), least)
    return deal(np.zeros(n, dtype=np.int64), table, random)


def _shares(random: np.random.Generator, clients: int, sigma: float | None, alpha: float | None) -> np.ndarray:
    if alpha is not None:
        shares = random.dirichlet(np.full(clients, checks.positive(alpha=alpha)))
    else:
        logs = checks.not_negative(sigma=1.0 if sigma is None else sigma) * random.standard_normal(clients)
        shares = np.exp(logs - logs.max())
        shares /= shares.sum()
    if not np.isfinite(shares).all():
        raise PlanError(f"alpha={alpha!r} or sigma={sigma!r} is beyond what can be drawn: take a milder one")
    return shares
