"""When a round is complete, late or void: a pure function (state, event, now) → (state, effects).

No clock, socket or disk: simulated and real time alike. ``now`` is in seconds since any fixed moment, monotonic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple

from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.core.part import Part

Effect = Literal["wait", "commit", "discard"]


class Opened(NamedTuple):
    """A round in progress."""

    asked: int
    wanted: int
    since: float
    arrived: int = 0
    failed: int = 0
    effect: Effect = "wait"
    reason: str = ""


@dataclass(frozen=True)
class Policy(Part):
    """The rules of a round.

    quorum       least share of the cohort (0 to 1) whose updates must arrive for the round to count; at least one
    over_select  share of the cohort asked in addition: 0.3 asks 13 clients where 10 are wanted, and the round is
                 complete when 10 have answered
    deadline     how long a round may take; when it has passed, the round commits with its quorum or is void. In a plan
                 with a world it is simulated time, and exact; otherwise it is measured when an answer arrives, so that
                 a round may exceed it by the work of one client or block
    retries      void rounds in a row, with new cohorts, before the run stops
    missed       what becomes of a round whose deadline passes without its quorum: "retry" makes it void, and the next
                 attempt asks another cohort; "wait" lets it go on until the quorum is there; "stop" stops the run
    gone         a client that has not been heard of for so long has failed in this round; for engines that wait for
                 clients of their own will (``https``), others hear of theirs at once
    """

    quorum: float = 0.0
    over_select: float = 0.0
    deadline: timedelta | None = None
    retries: int = 3
    missed: Literal["retry", "wait", "stop"] = "retry"
    gone: timedelta | None = None

    def __post_init__(self) -> None:
        checks.probability(quorum=self.quorum)
        checks.not_negative(over_select=self.over_select)
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise PlanError(f"Expected retries={self.retries!r} to be a whole number >= 0")
        if self.missed not in ("retry", "wait", "stop"):
            raise PlanError(f'Expected missed={self.missed!r} to be "retry", "wait" or "stop"')
        for name in ("deadline", "gone"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, timedelta):
                raise PlanError(f"Expected {name}={value!r} to be a timedelta: timedelta(minutes=5), say")
            checks.positive(**{name: value.total_seconds()})
        if self.missed != "retry" and self.deadline is None and not self.quorum:
            raise PlanError(f"missed={self.missed!r} is about a quorum that is missed: give quorum=… as well")

    def config(self) -> dict[str, object]:
        """In seconds; what is as usual and came later is left out, so that older runs can still be resumed."""
        found = super().config()
        for name in ("deadline", "gone"):
            value = getattr(self, name)
            found[name] = None if value is None else value.total_seconds()
        return {k: v for k, v in found.items() if (k, v) not in (("missed", "retry"), ("gone", None))}

    def ask(self, wanted: int, population: int) -> int:
        """How many clients are asked where so many are wanted."""
        return min(population, wanted + _share(self.over_select, wanted))

    def open(self, asked: int, wanted: int, now: float) -> Opened:
        """A round that asks ``asked`` clients."""
        return Opened(asked, wanted, now)

    def on(self, state: Opened, event: Literal["arrived", "failed", "tick"], now: float) -> Opened:
        """The round after an event; its ``effect`` says what to do."""
        if state.effect != "wait":
            return state
        if event == "arrived":
            state = state._replace(arrived=state.arrived + 1)
        elif event == "failed":
            state = state._replace(failed=state.failed + 1)
        late = self.deadline is not None and now - state.since > self.deadline.total_seconds()
        if state.arrived >= state.wanted > 0:
            return state._replace(effect="commit")
        all_heard = state.arrived + state.failed >= state.asked
        if late and not all_heard and self.missed == "wait" and state.arrived < self.least(state.wanted):
            return state
        if late or all_heard:
            return self._judge(state, "the deadline passed" if late else "all have answered or failed")
        return state

    def least(self, wanted: int) -> int:
        """How many answers a round needs to count, where so many are wanted."""
        return max(1, _share(self.quorum, wanted))

    def _judge(self, state: Opened, why: str) -> Opened:
        least = self.least(state.wanted)
        if state.arrived >= least:
            return state._replace(effect="commit")
        reason = f"{why}: {state.arrived} of {state.asked} clients answered, the quorum is {least}"
        return state._replace(effect="discard", reason=reason)


def _share(share: float, of: int) -> int:
    """The least whole number that is at least this share: 55 of 100 are 0.55 of them, whatever floats say."""
    return math.ceil(round(share * of, 9))
