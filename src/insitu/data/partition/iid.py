"""Equal shares at random: the benign case that all skewed ones are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core.seeds import generator
from insitu.data.arguments import enough, number_of_examples, whole


def iid(labels_or_n: Any, clients: int, seed: int = 0, least: int = 1) -> list[np.ndarray]:
    """Deals all examples out at random, so that no two clients differ by more than one in number.

    Args:
        labels_or_n: labels [n], of which only the number counts, or n.
        clients: how many clients.
        seed: a whole number; the same seed gives the same partition.
        least: how many examples every client must get.

    Returns:
        For each client its examples' numbers, int64, ascending.

    Raises:
        PlanError: an argument is out of range, or there are fewer than ``clients · least`` examples.
    """
    n = number_of_examples(labels_or_n)
    clients, _ = enough(n, clients, least)
    order = generator(whole(seed=seed), 0, "", "partition iid").permutation(n)
    return [np.sort(part) for part in np.array_split(order, clients)]
