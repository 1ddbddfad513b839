"""Label skew by construction: each client sees only a few classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.core.seeds import generator
from insitu.data.arguments import as_labels, distinct, enough, whole
from insitu.data.shares import by_owner


def shards(labels: Any, clients: int, shards_per_client: int = 2, seed: int = 0, least: int = 1) -> list[np.ndarray]:
    """Sorts by label, cuts into ``clients · shards_per_client`` shards and deals them at random.

    Shards differ by at most one example in number, and so do clients: which shards are the longer ones is
    chosen so.

    Args:
        labels: labels [n], of anything that can be sorted: classes, or measures of a regression.
        clients: how many clients.
        shards_per_client: how many shards each gets; with balanced classes also about how many classes it
            sees.
        seed: a whole number; the same seed gives the same partition.
        least: how many examples every client must get.

    Returns:
        For each client its examples' numbers, int64, ascending.

    Raises:
        PlanError: an argument is out of range, or there are too few examples for so many shards or clients.
        DataError: labels are not [n], or missing.

    Source: McMahan et al. (2017), "Communication-efficient learning of deep networks from decentralized
    data" ("pathological non-IID").
    """
    array = as_labels(labels)
    n = len(array)
    clients, _ = enough(n, clients, least)
    each = checks.count(shards_per_client=shards_per_client)
    if n < clients * each:
        raise PlanError(
            f"Expected clients={clients} times shards_per_client={each} to be at most the {n} examples there "
            f"are: take at most {n // clients} shards a client"
        )
    random = generator(whole(seed=seed), 0, "", "partition shards")
    held = random.permutation(clients * each).reshape(clients, each)
    sizes = np.empty(clients * each, dtype=np.int64)
    # Client i gets its share of all n, and splits it over its own shards: so both differ by at most one.
    shares = _evenly(n, clients)[random.permutation(clients)]
    for own, share in zip(held, shares, strict=True):
        sizes[own] = _evenly(int(share), each)
    owner = np.empty(clients * each, dtype=np.int64)
    owner[held] = np.arange(clients)[:, None]
    order = np.argsort(distinct(array)[1], kind="stable")
    return by_owner(order, np.repeat(owner, sizes), clients)


def _evenly(n: int, parts: int) -> np.ndarray:
    """n cut into whole numbers that differ by at most one."""
    return n // parts + (np.arange(parts) < n % parts)
