"""A call in words: for whom it waits, since when, and what happens next."""

from __future__ import annotations

from typing import Any

from insitu.core.federation import CallKey
from insitu.engines.https.calls.open_call import OpenCall
from insitu.engines.https.calls.presence import Presence


def told(key: CallKey, call: OpenCall, presence: Presence) -> dict[str, Any]:
    """phase, round, waiting_for, next, accepted, failed, asked: what ``insitu status`` shows."""
    state = call.state
    deadline = state.policy.deadline
    left = None if deadline is None else deadline.total_seconds() - call.now()
    waiting = [] if state.ends else [client for client in state.asked if state.who[client].seq < 0]
    return {
        "phase": {"train": "training", "evaluate": "evaluating", "predict": "predicting"}.get(key.kind, key.kind),
        "round": key.round,
        "asked": len(state.asked), "accepted": state.arrived, "failed": state.failed,
        "waiting_for": [
            {
                "site": client, "since": call.now(), "phase": _phase(call, client, presence),
                "last_contact": presence.since(client), "deadline_in": left,
            }
            for client in waiting
        ],
        "next": _next(call, len(waiting), left),
    }  # fmt: skip


def _phase(call: OpenCall, client: str, presence: Presence) -> str:
    standing = call.state.who[client]
    if standing.phase == "waiting":
        return "has not asked for its task"
    return standing.doing or presence.doing(client) or "at work"


def _next(call: OpenCall, waiting: int, left: float | None) -> str:
    state = call.state
    if state.ends:
        return f"the answers are summed: {state.ends}"
    least = state.policy.least(state.wanted)
    if state.wanted < len(state.asked):
        text = f"the round commits when {state.wanted} of {len(state.asked)} have answered"
    else:
        text = f"the round commits when all have answered; {state.arrived} have"
    if state.late:
        return f"the deadline has passed; the round commits when {least} have answered (policy.missed = 'wait')"
    if left is not None:
        text += f", or in {max(0.0, left):.0f} s with {least} at least"
    elif state.policy.gone is None:
        text += "; there is no deadline (policy.deadline, policy.gone)"
    return text
