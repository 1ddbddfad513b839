"""A simulated world: how fast clients' devices and links are, when they can be reached, who drops out."""

from insitu.rounds.world.availability import Always, Availability, Daily, Spells
from insitu.rounds.world.distribution import Distribution, LogNormal, Measured
from insitu.rounds.world.trace import Trace
from insitu.rounds.world.world import World

__all__ = ["Always", "Availability", "Daily", "Distribution", "LogNormal", "Measured", "Spells", "Trace", "World"]
