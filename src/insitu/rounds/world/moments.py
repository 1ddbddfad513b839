"""When a round can open: waiting on the simulated clock until enough clients are available."""

from __future__ import annotations

import numpy as np

from insitu.core.errors import RoundError
from insitu.core.types import Population
from insitu.rounds.world.availability import Always
from insitu.rounds.world.world import World

LONGEST_WAIT = 366 * 86400.0
BETWEEN_LOOKS = 1.0
"""Seconds after which the server looks again at the earliest: of a million clients, hundreds come and go in one."""
MOST_LOOKS = 10_000


def opening(world: World, seed: int, clients: Population, least: int, now: float) -> tuple[float, np.ndarray | None]:
    """The first moment from ``now`` on at which ``least`` clients are available, and the places of all who are, sorted.

    None stands for all clients: then nothing of the population's size is made. Raises RoundError where the moment does
    not come within a year.
    """
    population = len(clients)
    if isinstance(world.available, Always):
        return now, None
    places, moment, most = np.arange(population), now, 0
    for _ in range(MOST_LOOKS):
        begin, _ = world.available.spells(seed, clients, places, moment)
        here = begin <= moment
        count = int(np.count_nonzero(here))
        if count >= least:
            return moment, None if count == population else np.flatnonzero(here)
        most = max(most, count)
        # Whoever is there at the moment sought is there now or begins before it: so this is never too late.
        first = float(np.partition(np.where(here, moment, begin), least - 1)[least - 1])
        moment = max(first, moment + BETWEEN_LOOKS)
        if moment - now > LONGEST_WAIT:
            break
    raise RoundError(
        f"a round needs {least} clients that are available at once, and within a simulated year from {now:.0f} s on"
        f" there were never more than {most} of {population}: ask fewer of them, or make them available for longer"
    )
