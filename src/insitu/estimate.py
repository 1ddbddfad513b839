"""estimate(): what a run will take, before it is run, from its first rounds."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.protocols import Engine
from insitu.core.types import Population
from insitu.rounds.cohort import Everyone, Uniform, draw
from insitu.rounds.plan import Plan
from insitu.run import run
from insitu.stopwatch import Cost, Enough, Seen, Watch

LOOKED_AT = 20_000
"""Clients whose sizes are looked at to tell how the measured cohorts compare with the others."""


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take: ``start`` + rounds · ``round`` + evaluations · ``evaluation``.

    start        everything that happens once, the end included: what the first round takes more than others, too, and
                 all rounds until worker processes have joined in, where the engine calls some
    round        one round of clients of average size, its record in the store included
    evaluation   one evaluation, of which there will be ``evaluations``
    peak_memory  bytes: proportional set size of this process and its workers (Linux; elsewhere None). Memory of a GPU
                 is not in it
    bytes_up     of the arrays that clients send, in all rounds together; ``bytes_down`` of those sent to them
    measured     rounds that this is inferred from
    choices      the engine and what it chose
    """

    rounds: int
    start: Cost
    round: Cost
    evaluation: Cost
    evaluations: int
    peak_memory: int | None
    bytes_up: int
    bytes_down: int
    measured: int
    choices: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> Cost:
        """All of it."""
        return self.start + self.round * self.rounds + self.evaluation * self.evaluations

    @property
    def seconds(self) -> float:
        """Wall time of the whole run."""
        return self.total.seconds

    @property
    def cpu_seconds(self) -> float:
        """CPU of the whole run, all processes together."""
        return self.total.cpu_seconds

    def plain(self) -> dict[str, Any]:
        """All figures as JSON-ready data."""
        costs = {name: vars(getattr(self, name)) for name in ("start", "round", "evaluation")}
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, **vars(self), **costs}


def estimate(
    plan: Plan,
    clients: Population,
    *,
    rounds: int,
    engine: str | Engine | None = None,
    seed: int = 0,
    evaluate: Any = None,
    evaluate_every: int | None = None,
    stored: bool = True,
    **more: Any,
) -> Estimate:
    """Predicts what ``insitu.run`` with the same arguments will take, by running its first rounds.

    Two rounds are run, or more where they are quick, with the engine and the choices of the whole run. The first one
    pays for what happens once. Where the engine starts worker processes meanwhile, rounds go on until they have joined
    in, and those after it are the usual ones. ``stored``: whether the run will keep a record; it is then written to a
    temporary file meanwhile, and nothing is left behind. ``more``: further arguments of ``insitu.run`` that say how it
    works.

    Raises what ``run`` raises.
    """
    checks.count(rounds=rounds)
    every = plan.evaluate_every if evaluate_every is None else evaluate_every
    seen = Seen(engine, len(clients))
    watch = Watch(rounds, seen)
    with tempfile.TemporaryDirectory(prefix="insitu-estimate-") as folder, suppress(Enough):
        run(
            plan, clients, rounds=rounds, engine=seen, seed=seed, evaluate=evaluate,
            evaluate_every=1 if every else 0, store=Path(folder) / "insitu.db" if stored else None, observers=[watch],
            **more,
        )  # fmt: skip
    watch.end()
    plan = plan.resolve(clients.schema())
    changed, usual = watch.settled, watch.cycles[watch.settled + 1 :]
    one = watch.cycles[-1]
    if usual:
        rest = range(changed + 2, watch.measured + 1)
        one = _mean(usual) * _usual_examples(plan, clients, seed, rounds, rest)
    measuring = [cost for cost in watch.evaluations if cost is not None]
    later_measuring = _mean(measuring[1:]) if measuring[1:] else _mean(measuring)
    unusual = watch.cycles[: changed + 1]
    beyond = sum(unusual, Cost()) - one * len(unusual)
    once = watch.before + watch.after + beyond.at_least_nothing()
    once += (measuring[0] - later_measuring).at_least_nothing() if measuring else Cost()
    asked = _asked(plan, clients, seed, rounds, watch.asked)
    return Estimate(
        rounds, once, one, later_measuring, -(-rounds // every) if every else 0, watch.peak,
        _sent(watch.bytes_up, watch.asked, asked), _sent(watch.bytes_down, watch.asked, asked),
        watch.measured, watch.choices,
    )  # fmt: skip


def _mean(costs: list[Cost]) -> Cost:
    return sum(costs, Cost()) * (1 / len(costs)) if costs else Cost()


def _sent(measured: list[int], asked: list[int], in_all: float) -> int:
    """Bytes of all rounds. The first may send something else than those after it, which send alike, by client."""
    if len(measured) == 1 or not sum(asked[1:]):
        return round(sum(measured) * in_all / max(1, sum(asked)))
    return measured[0] + round(sum(measured[1:]) * (in_all - asked[0]) / sum(asked[1:]))


def _asked(plan: Plan, clients: Population, seed: int, rounds: int, measured: list[int]) -> float:
    """Clients that all rounds together will ask: exactly, where that is a function of the seed alone."""
    if plan.world is not None or plan.buffered is not None:
        return sum(measured) / len(measured) * rounds
    if isinstance(plan.cohort, (Uniform, Everyone)):
        return measured[0] * rounds
    return sum(len(draw(plan.cohort, plan.policy, len(clients), seed, one)[0]) for one in range(1, rounds + 1))


def _usual_examples(plan: Plan, clients: Population, seed: int, rounds: int, measured: range) -> float:
    """Examples of a usual round over those of the rounds that were measured; 1 where that cannot be known.

    Which clients take part in which round is known beforehand: the seed says so.
    """
    if plan.world is not None or plan.buffered is not None:
        return 1.0

    def examples(round: int) -> float:
        places, _ = draw(plan.cohort, plan.policy, len(clients), seed, round)
        sizes = [clients.size_at(int(place)) for place in places]
        return float("nan") if None in sizes else float(sum(size or 0 for size in sizes))

    seen = np.mean([examples(number) for number in measured])
    cohort = max(1, len(draw(plan.cohort, plan.policy, len(clients), seed, 1)[0]))
    some = np.unique(np.linspace(1, rounds, min(rounds, max(1, LOOKED_AT // cohort)), dtype=int))
    ratio = float(np.mean([examples(int(number)) for number in some]) / seen) if seen else 1.0
    return ratio if np.isfinite(ratio) else 1.0
