"""World: what devices, links and people are like in a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.core.part import Part
from insitu.rounds.world.availability import Always, Availability
from insitu.rounds.world.distribution import Distribution


@dataclass(frozen=True, kw_only=True)
class World(Part):
    r"""Devices, links and people's habits, simulated: with it a plan's rounds run on a simulated clock.

    .. math:: t_i = \left( \frac{\text{bytes down}}{\text{down}_i} + \frac{\text{examples}_i}{\text{speed}_i}
              + \frac{\text{bytes up}}{\text{up}_i} \right) e^{\text{jitter} \cdot z}

    speed      examples that a device trains on in a second; an example counts once an epoch
    down, up   bytes that its link takes in a second to the client, and from it (10 Mbit/s are 1.25e6)
    available  when clients can be reached (:class:`Always`, :class:`Daily`, :class:`Spells`, :class:`Trace`)
    dropout    probability that a client fails in the middle of its work, 0 to below 1
    jitter     standard deviation of the logarithm of a factor on a client's time, drawn anew each round

    ``speed``, ``down`` and ``up`` are numbers, the same for all, or distributions over clients (:class:`LogNormal`,
    :class:`Measured`); None takes no time. A client has the same device all through a run: what it has is a function
    of the run's seed and the client's place in the population. A client whose spell of availability ends before it is
    done is lost at that moment.
    """

    speed: float | Distribution | None = None
    down: float | Distribution | None = None
    up: float | Distribution | None = None
    available: Availability = field(default_factory=Always)
    dropout: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("speed", "down", "up"):
            given = getattr(self, name)
            if isinstance(given, type):
                raise PlanError(f"{name}={given.__name__} is a class, give an instance of it")
            if given is not None and not isinstance(given, Distribution):
                checks.positive(**{name: given})
        if not isinstance(self.available, Availability):
            raise PlanError(f"available={self.available!r} is not an Availability: give Always() or Daily(), say")
        if checks.probability(dropout=self.dropout) == 1:
            raise PlanError("dropout=1 leaves nobody who answers: give less")
        checks.not_negative(jitter=self.jitter)
