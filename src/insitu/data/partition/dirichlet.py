"""Label skew of a chosen strength: each class is shared out by a draw from a Dirichlet distribution."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.core.seeds import generator
from insitu.data.arguments import as_classes, enough, whole
from insitu.data.shares import cut, deal, settle


def dirichlet(labels: Any, clients: int, alpha: float = 0.5, seed: int = 0, least: int = 1) -> list[np.ndarray]:
    """For each class k draws ``p_k ~ Dirichlet(alpha, …, alpha)`` over clients and cuts the class by ``p_k``.

    Where a client would get fewer than ``least`` examples, all proportions are drawn again, up to 20 times;
    then the draw that lacks fewest is taken, and the missing examples move there from the largest clients.
    (The usual code draws for ever, which does not end with many clients and a small alpha.)

    Args:
        labels: classes [n]: whole numbers or text.
        clients: how many clients.
        alpha: the concentration, > 0. 100 is nearly iid, 0.5 a common choice, 0.1 leaves most clients one to
            three classes. Sizes become uneven too.
        seed: a whole number; the same seed gives the same partition.
        least: how many examples every client must get.

    Returns:
        For each client its examples' numbers, int64, ascending.

    Raises:
        PlanError: an argument is out of range, or there are fewer than ``clients · least`` examples.
        DataError: labels are not [n], or missing, or numbers with a fraction.

    Source: Yurochkin et al. (2019), "Bayesian nonparametric federated learning of neural networks".
    Hsu, Qi and Brown (2019), "Measuring the effects of non-identical data distribution", draw over classes
    for each client instead, which keeps clients equally large; both call the concentration alpha.
    """
    classes, codes = as_classes(labels)
    clients, least = enough(len(codes), clients, least)
    checks.positive(alpha=alpha)
    random = generator(whole(seed=seed), 0, "", "partition dirichlet")
    sizes = np.bincount(codes, minlength=len(classes))
    table = settle(lambda: cut(sizes, _proportions(random, alpha, len(classes), clients)), least)
    return deal(codes, table, random)


def _proportions(random: np.random.Generator, alpha: float, classes: int, clients: int) -> np.ndarray:
    drawn = random.dirichlet(np.full(clients, alpha), size=classes)
    if not np.isfinite(drawn).all():
        raise PlanError(f"alpha={alpha!r} is beyond what can be drawn: use iid, or shards for one class a client")
    return drawn
