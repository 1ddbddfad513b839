"""A round folded once more, from the updates that are still on the disk: the same server's loop, with kept answers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from insitu.core import wire
from insitu.core.errors import DataError, InsituError, PlanError
from insitu.core.events import RoundSealed
from insitu.core.federation import Call, Submitted
from insitu.core.protocols import Stepwise
from insitu.core.types import Answer, Failure, Task, Update, Variables
from insitu.engines.https.roster import Sites
from insitu.engines.https.wire.packing import unpack
from insitu.federation import tables
from insitu.federation.keeping import Kept
from insitu.rounds.cohort import draw
from insitu.rounds.memory import Memories
from insitu.rounds.outcome import Model
from insitu.rounds.plan import Plan
from insitu.rounds.server import Server
from insitu.seals import digest

ATTEMPTS = 64
"""Void attempts of a round after which its cohort is no longer looked for."""


class CannotFold(Exception):
    """Why a round cannot be folded again; nothing is wrong with it for that."""


@dataclass(frozen=True)
class Papers:
    """What is kept of a call: the manifests of its updates by client, and the message of who was asked first."""

    call: Call
    updates: Mapping[str, Mapping[str, Any]]
    message: Mapping[str, Any]


def folded(kept: Kept, code: Path, run: Submitted, seal: RoundSealed, papers: Sequence[Papers]) -> str:
    """The digest of the model that a sealed round's kept updates give.

    ``papers`` are those of the round's calls to train, by number. Raises CannotFold where the plan or the state
    before the round is not to be had, Refusal or BlobError where an update cannot be read.
    """
    plan, start, sites, seed = _plan(kept, code, run, seal.round)
    steps = plan.algorithm.steps_a_round() if isinstance(plan.algorithm, Stepwise) else 1
    counted = papers[-steps:]
    if len(counted) < steps:
        raise CannotFold(f"only {len(counted)} of its {steps} steps are kept")
    base = _base(plan, start, _read(kept, counted[0].message), seal)
    attempt = 0 if steps > 1 else _attempt(plan, sites, seed, seal.round, counted[0].call)
    server = Server(run.run, plan, _Replay(kept, counted), sites, Memories(), seed, clock=lambda: 0.0)
    outcome = server.run_round(Model(seal.round - 1, base), seal.round, attempt)
    if outcome.model is None:
        return "no model: " + outcome.reason
    return digest(outcome.model)


def _plan(kept: Kept, code: Path, run: Submitted, round: int) -> tuple[Plan, Variables | None, Sites, int]:
    """The run's plan, its first parameters, the sites of a round, and the run's seed."""
    try:
        config = tables.submitted(run.tables, run.run, code)
        sites, seed = Sites(kept.ledger, run.run), config.run.seed
        plan = config.plan().resolve(sites.schema())
        start = None if plan.learner is None else plan.learner.init(seed)
    except InsituError as error:
        raise CannotFold(f"its plan cannot be made here: {error}") from error
    if plan.digest(start) != kept.store.record(run.run).get("digest"):
        raise CannotFold("its plan is another one by now: other code, versions or declared columns")
    sites.begin(round)
    return plan, start, sites, seed


def _base(plan: Plan, start: Variables | None, message: Any, seal: RoundSealed) -> Any:
    """The state that the round began with, as the seal names it."""
    for state in _states(plan, start, message):
        if wire.digest({"state": state, "stages": {}}) == seal.base:
            return state
    raise CannotFold("what sites were asked does not hold all of the state before it, which is no longer kept")


def _states(plan: Plan, start: Variables | None, message: Any) -> Iterator[Any]:
    """States that the round may have begun with: the run's first, and those that are told to sites as a whole."""
    first = plan.algorithm.init(start)
    yield first
    if start is None or not isinstance(message, Mapping) or not isinstance(first, Mapping):
        return
    told = {name: message[name] for name in ("shared", "buffers") if name in message}
    try:
        state = plan.algorithm.init(replace(start, **told))
    except (PlanError, DataError):
        return
    yield state
    if isinstance(state, Mapping):
        yield {name: message.get(name, value) for name, value in state.items()}


def _attempt(plan: Plan, sites: Sites, seed: int, round: int, call: Call) -> int:
    """Which attempt of the round drew the call's cohort."""
    for attempt in range(ATTEMPTS):
        try:
            places, _ = draw(plan.cohort, plan.policy, len(sites), seed, round, attempt)
        except InsituError:  # too few are left for a cohort
            break
        if [sites.id_at(int(place)) for place in places] == list(call.asked):
            return attempt
    raise CannotFold("its cohort cannot be drawn again: the roster has changed")


def _read(kept: Kept, manifest: Mapping[str, Any]) -> Any:
    return unpack(manifest, kept.blobs.read)


class _Replay:
    """A session in which everybody says again what they have said."""

    def __init__(self, kept: Kept, papers: Sequence[Papers]) -> None:
        self._kept, self._left = kept, iter(papers)
        self.choices: dict[str, Any] = {}

    def run(self, work: Iterable[Task]) -> Generator[Answer | Failure, None, None]:
        papers = next(self._left)
        errors = {e.client: str(e.data.get("error", "")) for e in papers.call.entries if e.kind == "failed"}
        for task in work:
            manifest = papers.updates.get(task.client)
            if manifest is not None:
                value = _read(self._kept, manifest)
                yield Answer(task, Update(value, dict(manifest["weight"]), dict(manifest["metrics"])))
            elif task.client in errors:
                yield Failure(task.client, task.index, task.block, errors[task.client])

    def close(self) -> None:
        """Nothing is open."""
