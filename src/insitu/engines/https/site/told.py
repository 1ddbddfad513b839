"""What the coordinator says, looked at before it is believed: answers that are tables, and tasks that are tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insitu.core.errors import Refusal
from insitu.engines.https.http import Reply
from insitu.engines.https.wire.manifest import is_digest, is_task

LARGEST = 2**63
"""Counts and places are smaller; seeds may be twice as long."""
MAX_RUN = 200
"""Characters in a run's id."""


def table(reply: Reply) -> dict[str, Any]:
    """The answer's JSON object. Raises the Refusal that it is, or BROKEN where it is nothing of ours."""
    reply.checked()
    try:
        value = reply.value()
    except Refusal as refusal:
        raise Refusal("BROKEN", f"the answer is none of ours, is a proxy in between? {refusal}") from refusal
    if not isinstance(value, dict):
        raise Refusal("BROKEN", f"the answer is a {type(value).__name__}, not an object: is a proxy in between?")
    return value


def between(x: Any, least: float, most: float, otherwise: float) -> float:
    """The number, or the nearest that is sensible; ``otherwise`` where it is no number."""
    if type(x) not in (int, float) or not math.isfinite(x):
        return otherwise
    return min(most, max(least, float(x)))


@dataclass(frozen=True)
class Asked:
    """A task as it is asked: its id, the digests of description and message, and what :class:`~.core.types.Task` says.

    memory  the task whose memory it starts from, if any
    asked   how many clients are asked with it
    """

    id: str
    run: str
    round: int
    version: int
    kind: str
    index: int
    place: int
    block: int
    seed: int
    discount: float
    asked: int
    description: str
    message: str
    memory: str | None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Asked:
        """Raises Refusal SITE_REFUSED, which names what is wrong with it. It has an id of ours already."""
        if not (is_task(told.get("task")) and is_digest(told.get("message")) and is_digest(told.get("description"))):
            raise Refusal("SITE_REFUSED", "the task has no id and digests of ours")
        run, discount = told.get("run"), told.get("discount", 1.0)
        _want(isinstance(run, str) and 0 < len(run) <= MAX_RUN and run.isprintable(), "run", run)
        _want(isinstance(told.get("kind"), str), "kind", told.get("kind"))
        _want(type(discount) in (int, float) and 0 <= discount <= 1e300, "discount", discount)
        memory = told.get("memory")
        named = memory.get("task") if isinstance(memory, dict) else None
        _want(memory is None or is_task(named), "memory", memory)
        numbers = ("round", "version", "index", "place", "block", "asked")
        counts = {name: _whole(told, name, LARGEST) for name in numbers}
        return cls(
            id=told["task"], run=str(run), kind=told["kind"], seed=_whole(told, "seed", LARGEST**2),
            discount=float(discount), description=told["description"], message=told["message"], memory=named, **counts,
        )  # fmt: skip


def _whole(told: Mapping[str, Any], name: str, most: int) -> int:
    value = told.get(name)
    _want(type(value) is int and 0 <= value < most, name, value)
    return int(value)  # type: ignore[arg-type]


def _want(right: bool, name: str, value: Any) -> None:
    if not right:
        raise Refusal("SITE_REFUSED", f"the task's {name} is {value!r:.60}, which is none")
