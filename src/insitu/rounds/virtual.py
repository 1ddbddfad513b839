"""A round in simulated time: who is asked, when each answers or is lost, and what the policy makes of it.

When an answer arrives follows from its size and the client's device, not from what is in it. So all arrivals are known
before any work is done: the policy hears of them first, in the order of simulated time, and only the clients whose
answers count do their work, in the cohort's order. That gives the answer of doing everything and throwing the rest
away, costs less, and does not depend on the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from insitu.core import seeds
from insitu.rounds.cohort import draw, least
from insitu.rounds.plan import Plan
from insitu.rounds.policy import Policy
from insitu.rounds.world.crowd import Crowd, Fates


@dataclass(frozen=True)
class Clock:
    """What simulated time carries from round to round, as a tree for checkpoints (:meth:`tree`).

    now        seconds since the start of the run
    committed  when the last round was committed
    bytes_up   mean bytes of the last round's updates; None before there was one
    """

    now: float = 0.0
    committed: float = 0.0
    bytes_up: float | None = None

    def tree(self) -> dict[str, Any]:
        """As a tree."""
        return dict(vars(self))

    @classmethod
    def of(cls, pending: Mapping[str, Any]) -> Clock:
        """Out of a tree; an empty one is the clock before the first round."""
        return cls(**pending)


@dataclass(frozen=True)
class Asked:
    """A round that is open: ``places`` [n] were asked at ``since``, when ``available`` clients could have been."""

    places: np.ndarray
    wanted: int
    since: float
    available: int
    fates: Fates


@dataclass(frozen=True)
class Verdict:
    """What the policy says of it: ``counted`` [k] are positions among those asked, in the cohort's order.

    seconds  from opening to the end of the round
    late     asked, and neither there nor lost when it ended
    dropped  lost before
    """

    effect: str
    reason: str
    seconds: float
    counted: np.ndarray
    late: int
    dropped: int


def ask(plan: Plan, crowd: Crowd, clock: Clock, down: int, round: int, attempt: int) -> Asked:
    """Opens a round as soon as enough clients are available; ``down`` are the bytes of its message."""
    since, here = crowd.opening(least(plan.cohort), clock.now)
    available = len(crowd.clients) if here is None else len(here)
    drawn, wanted = draw(plan.cohort, plan.policy, available, crowd.seed, round, attempt)
    places = drawn if here is None else here[drawn]
    chance = seeds.seed(crowd.seed, round, "", f"world {attempt}")
    up = down if clock.bytes_up is None else clock.bytes_up
    fates = crowd.fates(chance, places, crowd.work(plan.algorithm, places, round), down, up, since)
    return Asked(places, wanted, since, available, fates)


def judge(policy: Policy, asked: Asked, broken: Collection[int] = ()) -> Verdict:
    """The policy's verdict. ``broken`` are positions whose work was done and failed: they count as lost on arrival."""
    fates = asked.fates
    answers = fates.answers.copy()
    answers[list(broken)] = False
    # Equal moments are heard in the cohort's order, so that the verdict is a function of the seeds alone.
    order = np.argsort(fates.seconds, kind="stable")
    last = np.inf if policy.deadline is None else policy.deadline.total_seconds()
    state, heard, now = policy.open(len(order), asked.wanted, 0.0), 0, 0.0
    for moment, answered in zip(fates.seconds[order].tolist(), answers[order].tolist(), strict=True):
        waits = policy.missed == "wait" and state.arrived < policy.least(state.wanted)
        if moment > last and not waits:
            break
        now, heard = moment, heard + 1
        state = policy.on(state, "arrived" if answered else "failed", now)
        if state.effect != "wait":
            break
    if state.effect == "wait":  # somebody is late, or nobody was asked
        now = last if len(order) else 0.0
        state = policy.on(state, "tick", float(np.nextafter(now, np.inf)))
    known = order[:heard]
    counted = np.sort(known[answers[known]])
    dropped = int(np.count_nonzero(~fates.answers[known]))
    return Verdict(state.effect, state.reason, now, counted, len(order) - heard, dropped)


def measures(asked: Asked, verdict: Verdict, clock: Clock, down: int, up: float) -> dict[str, float]:
    """The round's columns in the history. ``clock`` is the one after it, and still knows the commit before."""
    got, sent = asked.fates.shares_sent(verdict.seconds)
    return {
        "clock": clock.now,
        "simulated_seconds": clock.now - clock.committed,
        "available": asked.available,
        "asked": len(asked.places),
        "late": verdict.late,
        "dropped": verdict.dropped,
        "simulated_bytes_down": float(got.sum() * down),
        "simulated_bytes_up": float(sent.sum() * up),
    }
