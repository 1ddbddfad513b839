"""What happened, as values. Observers receive them, the store keeps them; nothing reacts to them by changing a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """The root of all events. ``round`` counts from 1; 0 is before the first round."""

    run: str
    round: int

    def plain(self) -> dict[str, Any]:
        """The event's name and its fields; the lists and dicts in it are the event's own."""
        return {"event": type(self).__name__, **vars(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """A run starts, or goes on after ``round`` committed rounds."""

    engine: str
    rounds: int
    clients: int
    choices: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False


@dataclass(frozen=True)
class RoundStarted(Event):
    """A cohort was drawn."""

    cohort: int


@dataclass(frozen=True)
class UpdatesArrived(Event):
    """Clients' updates were folded in: one event for many clients, since a round may have ten thousand.

    metrics     the names of what each row ends with
    rows        a list a client: its id, its examples, the bytes of the arrays it sent, and for each of ``metrics`` the
                mean over its examples (NaN where it told none)
    bytes_down  of the arrays sent to each of them
    """

    metrics: list[str]
    rows: list[list[Any]]
    bytes_down: int

    def each(self) -> Iterator[dict[str, Any]]:
        """Client by client: ``client``, ``examples``, ``bytes_up`` and ``metrics`` by name."""
        for client, examples, bytes_up, *means in self.rows:
            own = dict(zip(self.metrics, means, strict=True))
            yield {"client": client, "examples": examples, "bytes_up": bytes_up, "metrics": own}


@dataclass(frozen=True)
class Arrivals(Event):
    """Who filled an asynchronous round in real time: what a replay of the run goes by.

    rows  a list an answer, in the order of arrival: the client's id, its place in the population, the version that it
          started from, and the seconds from its start to its arrival
    """

    rows: list[list[Any]]


@dataclass(frozen=True)
class ClientFailed(Event):
    """A client's work failed; the round goes on without it."""

    client: str
    error: str


@dataclass(frozen=True)
class RoundCommitted(Event):
    """The round's model is the new model."""

    clients: int
    failed: int
    seconds: float
    metrics: dict[str, float]
    """Training metrics: means over the examples of all clients that took part."""
    bytes_up: int
    bytes_down: int
    measures: dict[str, float] = field(default_factory=dict)
    """What the algorithm says of its state: the nodes' disagreement, the inertia."""


@dataclass(frozen=True)
class RoundSealed(Event):
    """What a round that is committed was made of: written in the same transaction as its checkpoint.

    accepted  [client, SHA-256 of its update's manifest], in the cohort's order; a client more than once where a round
              has several steps
    base      digest of the state that the round began with (of state and stages), ``model`` of the one after
    previous  :meth:`digest` of the last round's seal, which makes a chain of them; empty in the first
    """

    accepted: list[list[str]]
    base: str
    model: str
    previous: str

    def digest(self) -> str:
        """SHA-256 over all that it says, 64 hexadecimal digits."""
        text = json.dumps(self.plain(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class WireBytes(Event):
    """What each rank has sent to others since the last such event: in this round, its evaluation included."""

    sent: list[int]


@dataclass(frozen=True)
class RoundDiscarded(Event):
    """The round is void; the model is unchanged."""

    reason: str


@dataclass(frozen=True)
class Evaluated(Event):
    """The model after this round was measured, ``where`` central or on the clients.

    For clients, ``metrics`` are means over all examples, ``clients`` the metrics by client, and ``spread`` holds for
    each metric the mean over clients, the mean of the worst tenth, and percentiles 10, 50 and 90.
    """

    where: str
    metrics: dict[str, float]
    clients: dict[str, dict[str, float]] = field(default_factory=dict)
    spread: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Notice(Event):
    """Something worth a sentence to the user: a choice made by itself, a slower path taken."""

    text: str


@dataclass(frozen=True)
class RunFinished(Event):
    """All rounds are done."""

    seconds: float


@dataclass(frozen=True)
class RunStopped(Event):
    """The run stopped before its last round and can be resumed."""

    reason: str
