"""What is carried from round to round, and what became of one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from insitu.core.protocols import Rests, Session
from insitu.core.types import Failure, Report


@dataclass(frozen=True)
class Model:
    """What is carried from round to round: ``version`` rounds are committed.

    ``stages`` are the states of the stages' server halves, ``pending`` the simulated clock and, in asynchronous rounds,
    the clients at work.
    """

    version: int
    state: Any
    stages: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a round. ``model`` is None where it is void, and ``spent`` what the next attempt starts from."""

    model: Model | None
    reports: list[Report]
    failures: list[Failure]
    asked: int
    bytes_down: int
    """Bytes of the arrays sent to one client."""
    reason: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    spent: Model | None = None
    """The model as it was before a void round, and the simulated time after it."""
    arrivals: list[list[Any]] = field(default_factory=list)
    """In real time who arrived when, as the ``Arrivals`` event says it."""


@dataclass(frozen=True)
class Heard:
    """What came in from the clients at ``places``, what the policy says of it, and what is pending after it."""

    accumulator: Any
    reports: list[Report]
    failures: list[Failure]
    places: np.ndarray
    effect: str
    reason: str
    pending: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    arrivals: list[list[Any]] = field(default_factory=list)


def rested(session: Session, model: Model) -> Model:
    """The model, out of memory while clients are at work, where the session does that."""
    return replace(model, state=session.rested(model.state)) if isinstance(session, Rests) else model
