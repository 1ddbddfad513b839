"""Examples held out for evaluation: a part of every client's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.core.seeds import generator
from insitu.data.arguments import whole


@dataclass(frozen=True)
class Holdout:
    """Which of a client's examples are held out: a function of the seed and the client's id, of nothing else.

    ``fraction`` is in [0, 1). Of n >= 2 examples, ``round(fraction · n)`` are held out, but at least one, and
    at least one is kept to learn from. A client with a single example learns from it and holds out none.
    """

    fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if checks.probability(holdout=self.fraction) == 1:
            raise PlanError(f"Expected holdout={self.fraction!r} < 1: something must be left to learn from")
        whole(seed=self.seed)

    def count(self, n: int) -> int:
        """How many of n examples are held out."""
        if self.fraction == 0 or n < 2:
            return 0
        return min(n - 1, max(1, int(self.fraction * n + 0.5)))

    def split(self, n: int, client: str) -> tuple[Any, np.ndarray | None]:
        """The positions in 0 … n-1 to learn from and those held out, both ascending.

        Without a holdout the first is a slice, which takes no copy, and the second None.
        """
        held = self.count(n)
        if not held:
            return slice(None), None
        order = generator(self.seed, 0, client, "holdout").permutation(n)
        return np.sort(order[held:]), np.sort(order[:held])
