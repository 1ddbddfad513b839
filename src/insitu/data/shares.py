"""How many examples of each class a client gets: cutting by proportions, raising the smallest, dealing.

A *table* is [classes, clients]: ``table[k, i]`` examples of class k go to client i. Where labels play no
part, all examples are of one class.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

_DRAWS = 20
"""How often proportions are drawn before examples are moved by hand."""


def cut(sizes: np.ndarray, proportions: np.ndarray) -> np.ndarray:
    """The table nearest to ``proportions`` [classes, clients] whose rows sum to ``sizes`` [classes] exactly.

    Cuts at the rounded running sums, so that no class loses or gains an example.
    """
    bounds = np.rint(np.cumsum(proportions, axis=1) * sizes[:, None]).astype(np.int64)
    bounds = np.minimum(bounds, sizes[:, None])
    bounds[:, -1] = sizes
    return np.diff(bounds, axis=1, prepend=0)


def settle(draw: Callable[[], np.ndarray], least: int) -> np.ndarray:
    """The first of 20 drawn tables with ``least`` examples for every client; else the nearest one, lifted."""
    best = draw()
    for _ in range(_DRAWS - 1):
        if lacking(best, least) == 0:
            break
        table = draw()
        if lacking(table, least) < lacking(best, least):
            best = table
    return lift(best, least)


def lacking(table: np.ndarray, least: int) -> int:
    """How many examples have to move until every client has ``least``."""
    return int(np.maximum(least - table.sum(axis=0), 0).sum())


def lift(table: np.ndarray, least: int) -> np.ndarray:
    """The table with every client at ``least`` examples or more, as few as possible moved.

    Each one is taken from the client that has most at that moment, out of the class of which that client has
    most.
    """
    table, sizes = table.copy(), table.sum(axis=0)
    # Receivers stay in the heap with an old size below ``least``; the largest client is always above it.
    donors = [(-int(size), client) for client, size in enumerate(sizes)]
    heapq.heapify(donors)
    for client in np.flatnonzero(sizes < least):
        for _ in range(int(least - sizes[client])):
            size, donor = heapq.heappop(donors)
            label = int(np.argmax(table[:, donor]))
            table[label, donor] -= 1
            table[label, client] += 1
            heapq.heappush(donors, (size + 1, donor))
    return table


def deal(codes: np.ndarray, table: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """The examples of each client, ascending: a random ``table[k, i]`` of those with code k to client i."""
    order = generator.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    clients = np.tile(np.arange(table.shape[1]), table.shape[0])
    return by_owner(order, np.repeat(clients, table.ravel()), table.shape[1])


def by_owner(examples: np.ndarray, owners: np.ndarray, clients: int) -> list[np.ndarray]:
    """The examples of each client, ascending; ``owners[j]`` is the client of ``examples[j]``."""
    order = np.lexsort((examples, owners))
    sizes = np.bincount(owners, minlength=clients)
    return np.split(examples[order].astype(np.int64, copy=False), np.cumsum(sizes)[:-1])
