"""A call's rules: a pure function (state, event, now) → (state, effects). No clock, socket or disk.

``now`` is in seconds for which the call has been open, by a clock that never goes back. What an effect says is done
only once the entries among the effects are durable; replaying the entries gives the same state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from insitu.core.federation import Entry
from insitu.rounds.policy import Policy

Phase = Literal["waiting", "working", "arrived", "failed"]


class Standing(NamedTuple):
    """Where a client stands in a call. ``heard``: when it was last heard of; ``doing``: in its own word."""

    phase: Phase = "waiting"
    heard: float = 0.0
    doing: str = ""
    data: Mapping[str, Any] = {}
    """Of its entry: the ``manifest`` of what arrived, or the ``error``."""
    seq: int = -1


@dataclass(frozen=True)
class State:
    """A call. ``asked`` in the cohort's order; ``wanted`` answers make it complete.

    ends    why nothing more is taken, once nothing is
    late    whether the deadline has passed without a quorum, and the policy waits on
    """

    asked: tuple[str, ...]
    wanted: int
    policy: Policy
    who: Mapping[str, Standing]
    seq: int = 0
    arrived: int = 0
    failed: int = 0
    ends: str = ""
    late: bool = False


# ------------------------------------------------------------ what happens


@dataclass(frozen=True)
class Asks:
    """A client asks what there is to do."""

    client: str


@dataclass(frozen=True)
class Lives:
    """A client was heard of, ``doing`` something."""

    client: str
    doing: str = ""


@dataclass(frozen=True)
class Arrives:
    """A client's update is on the disk, and has been checked."""

    client: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Fails:
    """A client says that it cannot, or what it sent must not be counted, or it may no longer take part."""

    client: str
    error: str


@dataclass(frozen=True)
class Ticks:
    """Time has passed."""


@dataclass(frozen=True)
class Closes:
    """Whoever opened the call has heard enough."""

    reason: str


Event = Asks | Lives | Arrives | Fails | Ticks | Closes

# ------------------------------------------------------------ what follows


@dataclass(frozen=True)
class HandsOut:
    """This client is told its task."""

    client: str


@dataclass(frozen=True)
class Records:
    """This is written down, durably."""

    entry: Entry


@dataclass(frozen=True)
class Refuses:
    """The event changes nothing, for this reason: a code of ``codes.py``, and text."""

    code: str
    text: str


@dataclass(frozen=True)
class Knows:
    """The event says what is known already: it counts once, as it did."""

    data: Mapping[str, Any]


@dataclass(frozen=True)
class Cancels:
    """These clients need not go on."""

    clients: tuple[str, ...]
    reason: str


Effect = HandsOut | Records | Refuses | Knows | Cancels


def opened(asked: Sequence[str], wanted: int, policy: Policy) -> State:
    """A call in which nothing has happened yet."""
    return State(tuple(asked), wanted, policy, {client: Standing() for client in asked})


def replayed(state: State, entries: Sequence[Entry], now: float) -> State:
    """The state after these entries; whoever has none counts as heard of just now."""
    for entry in entries:
        state = _written(state, entry)
    fresh = {c: s._replace(heard=now) if s.seq < 0 else s for c, s in state.who.items()}
    return replace(state, who=fresh, ends=state.ends or _complete(state))


def step(state: State, event: Event, now: float) -> tuple[State, list[Effect]]:
    """What an event makes of a call, and what is to be done about it."""
    if isinstance(event, Closes):
        return _closed(state, event.reason, now)
    if isinstance(event, Ticks):
        return _after(state, now, [])
    standing = state.who.get(event.client)
    if standing is None:
        return state, [Refuses("UNKNOWN_TASK", f"{event.client!r} was not asked in this call")]
    if isinstance(event, (Asks, Lives)):
        return _heard(state, event, standing, now)
    if standing.seq >= 0:
        return state, [_again(event, standing)]
    if state.ends:
        return state, [Refuses("ROUND_CLOSED", f"{event.client!r} is late: {state.ends}")]
    if isinstance(event, Arrives):
        entry = Entry(state.seq, "accepted", event.client, now, event.data)
    else:
        entry = Entry(state.seq, "failed", event.client, now, {"error": event.error})
    return _after(_written(state, entry), now, [Records(entry)])


def wakes(state: State) -> float | None:
    """When time alone changes something: the deadline, or the first client to count as gone; None: never."""
    if state.ends:
        return None
    moments = []
    if state.policy.deadline is not None and not state.late:
        moments.append(state.policy.deadline.total_seconds())
    if state.policy.gone is not None:
        gone = state.policy.gone.total_seconds()
        moments += [s.heard + gone for s in state.who.values() if s.seq < 0]
    return min(moments, default=None)


def ready(state: State) -> list[int]:
    """Indices of the clients that can be told of now, in the cohort's order.

    Where a round may be complete before all have answered, that is nobody before it is, and then whoever counts;
    else those from the first on of whom all is known.
    """
    known = [i for i, client in enumerate(state.asked) if state.who[client].seq >= 0]
    if state.ends:
        return known
    if state.wanted < len(state.asked):
        return []
    return [i for at, i in enumerate(known) if at == i]


def _heard(state: State, event: Asks | Lives, standing: Standing, now: float) -> tuple[State, list[Effect]]:
    if standing.seq >= 0:
        return state, [Refuses("STALE_ROUND", f"{event.client!r} has answered in this call")]
    if state.ends:
        return state, [Refuses("ROUND_CLOSED", f"{event.client!r} is late: {state.ends}")]
    doing = event.doing if isinstance(event, Lives) else standing.doing
    phase: Phase = "working" if isinstance(event, Asks) else standing.phase
    who = {**state.who, event.client: standing._replace(phase=phase, heard=max(now, standing.heard), doing=doing)}
    return replace(state, who=who), [HandsOut(event.client)] if isinstance(event, Asks) else []


def _again(event: Arrives | Fails, standing: Standing) -> Effect:
    """The same thing once more counts as it did; another one comes too late."""
    same = event.data if isinstance(event, Arrives) else {"error": event.error}
    if standing.data == same or (isinstance(event, Fails) and standing.phase == "failed"):
        return Knows(standing.data)
    if standing.phase == "failed":
        return Refuses("ROUND_CLOSED", f"{event.client!r} has failed in this call: {standing.data.get('error')}")
    return Refuses("STALE_ROUND", f"another update of {event.client!r} counts in this call already")


def _written(state: State, entry: Entry) -> State:
    """The state with an entry in it."""
    state = replace(state, seq=entry.seq + 1)
    if entry.kind == "closed":
        return replace(state, ends=state.ends or str(entry.data.get("reason", "closed")))
    before = state.who[entry.client]
    phase: Phase = "arrived" if entry.kind == "accepted" else "failed"
    who = {**state.who, entry.client: before._replace(phase=phase, heard=entry.now, data=entry.data, seq=entry.seq)}
    arrived, failed = state.arrived + (phase == "arrived"), state.failed + (phase == "failed")
    return replace(state, who=who, arrived=arrived, failed=failed)


def _after(state: State, now: float, effects: list[Effect]) -> tuple[State, list[Effect]]:
    """What time makes of it, and whether it is complete."""
    if not state.ends:
        state, effects = _gone(state, now, effects)
    if not state.ends and not _complete(state):
        state, effects = _late(state, now, effects)
    if not state.ends and (why := _complete(state)):
        state = replace(state, ends=why)
        left = tuple(c for c in state.asked if state.who[c].seq < 0)
        if left:
            effects.append(Cancels(left, why))
    return state, effects


def _gone(state: State, now: float, effects: list[Effect]) -> tuple[State, list[Effect]]:
    if state.policy.gone is None:
        return state, effects
    least = state.policy.gone.total_seconds()
    silent = [c for c in state.asked if state.who[c].seq < 0 and now - state.who[c].heard >= least]
    return _lost(state, silent, f"GoneError: it has not been heard of for {least:g} s (policy.gone)", now, effects)


def _late(state: State, now: float, effects: list[Effect]) -> tuple[State, list[Effect]]:
    deadline = state.policy.deadline
    if deadline is None or now < deadline.total_seconds():
        return state, effects
    if state.policy.missed == "wait" and state.arrived < state.policy.least(state.wanted):
        return replace(state, late=True), effects
    late = [c for c in state.asked if state.who[c].seq < 0]
    error = f"DeadlineError: no answer within {deadline.total_seconds():g} s (policy.deadline)"
    return _lost(state, late, error, now, effects)


def _lost(
    state: State, clients: Sequence[str], error: str, now: float, effects: list[Effect]
) -> tuple[State, list[Effect]]:
    for client in clients:
        entry = Entry(state.seq, "failed", client, now, {"error": error})
        state = _written(state, entry)
        effects.append(Records(entry))
    if clients:
        effects.append(Cancels(tuple(clients), error))
    return state, effects


def _closed(state: State, reason: str, now: float) -> tuple[State, list[Effect]]:
    """Closing is written down once; whoever has not answered need not go on."""
    entry = Entry(state.seq, "closed", "", now, {"reason": reason})
    left = tuple(c for c in state.asked if state.who[c].seq < 0)
    effects: list[Effect] = [Records(entry)]
    if left and not state.ends:
        effects.append(Cancels(left, reason))
    return _written(state, entry), effects


def _complete(state: State) -> str:
    if state.arrived >= state.wanted:
        return f"{state.arrived} of {len(state.asked)} have answered, as many as were wanted"
    if state.arrived + state.failed >= len(state.asked):
        return "all have answered or failed"
    return ""
