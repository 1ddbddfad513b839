"""Every random choice is a function of (run seed, round, client, purpose).

So no generator's state has to be saved: a resumed run, another engine or another number of workers asks for the
same numbers and gets them. The hash is BLAKE2b, which has no relation to the order in which seeds are asked for.
"""

from __future__ import annotations

from hashlib import blake2b
from threading import local

import numpy as np


def seed(run: int, round: int, client: str, purpose: str) -> int:
    """A seed in [0, 2**63), the same on every machine for the same four arguments."""
    text = f"{run}\x1f{round}\x1f{client}\x1f{purpose}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(run: int, round: int, client: str, purpose: str) -> np.random.Generator:
    """A NumPy generator started from :func:`seed`."""
    return np.random.Generator(np.random.PCG64(seed(run, round, client, purpose)))


class _Counters(local):
    """One Philox generator a thread (Salmon et al. 2011): its key alone decides what it draws."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.state = self.bits.state
        self.generator = np.random.Generator(self.bits)


_COUNTERS = _Counters()


def restarted(run: int, round: int, client: str, purpose: str) -> np.random.Generator:
    """The calling thread's one generator, started anew from :func:`seed`: for what is drawn at once and not kept.

    Its numbers are not those of :func:`generator`; it takes a sixth of the time.
    """
    state = _COUNTERS.state
    state["state"]["key"][0] = seed(run, round, client, purpose)
    _COUNTERS.bits.state = state
    return _COUNTERS.generator
