"""Every random choice is a function of (run seed, round, client, purpose).

So no generator's state has to be saved: a resumed run, another engine or another number of workers asks for the
same numbers and gets them. The hash is BLAKE2b, which has no relation to the order in which seeds are asked for.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def seed(run: int, round: int, client: str, purpose: str) -> int:
    """A seed in [0, 2**63), the same on every machine for the same four arguments."""
    text = f"{run}\x1f{round}\x1f{client}\x1f{purpose}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(run: int, round: int, client: str, purpose: str) -> np.random.Generator:
    """A NumPy generator started from :func:`seed`."""
    return np.random.Generator(np.random.PCG64(seed(run, round, client, purpose)))
