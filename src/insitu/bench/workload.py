"""The workload that everyone is measured on. NumPy and the standard library only: peers load this file by its path.

1000 clients of 784 float32 features and 10 classes, labels from a random linear teacher; or the speakers of
Shakespeare's plays, each window of 80 characters with the one that follows. A round is 100 clients drawn uniformly,
one epoch of SGD (learning rate 0.05, batches of 10, the last, partial one kept), the mean weighted by examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLIENTS, COHORT, BATCH, LR = 1000, 100, 10, 0.05
FEATURES, CLASSES = 784, 10
LENGTH, LETTERS = 80, 65
STEP, LARGEST = 40, 400
"""Windows of a speaker's text begin STEP characters apart; LARGEST is the most that any client has of anything."""


@dataclass(frozen=True)
class Workload:
    """Examples client after client: client i has the rows ``starts[i]:starts[i + 1]`` of x [n, …] and y [n]."""

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    cohort: int
    source: str

    def __len__(self) -> int:
        return len(self.starts) - 1

    def client(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of the client at this place, as views."""
        rows = slice(self.starts[place], self.starts[place + 1])
        return self.x[rows], self.y[rows]

    def parts(self) -> list[np.ndarray]:
        """The row numbers of each client."""
        return [np.arange(a, b) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]

    def steps(self, places: np.ndarray) -> int:
        """The steps that these clients do in one epoch."""
        return int(np.ceil(np.diff(self.starts)[places] / BATCH).sum())


def sizes(clients: int = CLIENTS) -> np.ndarray:
    """Examples by client [clients]: log-normal around 50, from 10 to 400."""
    drawn = np.random.default_rng(0).lognormal(np.log(50), 0.8, clients)
    return np.clip(np.round(drawn), 10, LARGEST).astype(np.int64)


def features(clients: int = CLIENTS, cohort: int = COHORT) -> Workload:
    """784 features drawn from a normal distribution, labels [n] int64 from a random linear teacher."""
    starts = np.concatenate([[0], np.cumsum(sizes(clients))])
    generator = np.random.default_rng(1)
    teacher = generator.standard_normal((FEATURES, CLASSES), dtype=np.float32)
    x = generator.standard_normal((starts[-1], FEATURES), dtype=np.float32)
    return Workload(x, (x @ teacher).argmax(axis=1), starts, cohort, "normal features, linear teacher")


def letters(x: np.ndarray, y: np.ndarray, keys: np.ndarray, cohort: int = COHORT) -> Workload:
    """Windows [n, 80] by speaker, at most 400 a speaker: the first ones."""
    order = np.argsort(keys, kind="stable")
    first = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
    owned = [rows[:LARGEST] for rows in np.split(order, first[1:])]
    starts = np.concatenate([[0], np.cumsum([len(rows) for rows in owned])])
    rows = np.concatenate(owned)
    return Workload(x[rows], y[rows], starts, min(cohort, len(owned)), "Shakespeare by speaker")


def synthetic_letters(clients: int = 300, cohort: int = COHORT) -> Workload:
    """The same shapes where the plays are not there: each letter follows the one before by a random rule, or not."""
    starts = np.concatenate([[0], np.cumsum(sizes(clients))])
    generator = np.random.default_rng(2)
    follows, text = generator.permutation(LETTERS), generator.integers(0, LETTERS, (starts[-1], LENGTH + 1))
    for place in range(1, LENGTH + 1):
        kept = generator.random(starts[-1]) < 0.5
        text[kept, place] = follows[text[kept, place - 1]]
    return Workload(text[:, :-1].copy(), text[:, -1].copy(), starts, min(cohort, clients), "synthetic text")
