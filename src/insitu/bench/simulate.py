"""Rounds of simulation, insitu and the loop by hand in turn: ``insitu bench simulate``."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from insitu.bench import floor, machine, models
from insitu.bench.child import Child
from insitu.bench.processes import PeakMemory
from insitu.bench.workload import COHORT, Workload
from insitu.core import checks
from insitu.core.errors import EngineError, PlanError
from insitu.rounds.cohort import Uniform

ROUNDS = {"lr": 60, "mlp": 24, "cnn": 4, "lstm": 5}
"""Paired rounds by model, where none are given: half a minute to three minutes each."""
WARMUP = {"lr": 120, "mlp": 24, "cnn": 2, "lstm": 2}
"""Rounds before those, where none are given. Where rounds are short: some seconds, in which worker processes join."""
ROW = {"lr": 10, "mlp": 4}
"""Rounds in a row before it is the other's turn, where they are short: between two rounds of a run nobody else empties
the caches, and a process that waits for another after each of its rounds takes half as long again for it."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is measured and how long.

    rounds    paired rounds; None: by model
    warmup    rounds of each before those, the first of which starts everything; None: by model
    planned   the rounds that insitu is told the run will have, on which its choices depend
    engine    insitu's, by name with its ``options``; None: what it chooses by itself
    clients   fewer clients than the workload's (for a quick look), of which ``cohort`` take part
    cold      insitu finds empty caches of choices and compiled code; else those of this user, as they are
    peers     by name the command that starts an entrant (:mod:`insitu.bench.entrant`); the model's name is added
    """

    models: Sequence[str] = tuple(models.MODELS)
    rounds: int | None = None
    warmup: int | None = None
    planned: int = 500
    engine: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    clients: int | None = None
    cohort: int = COHORT
    cold: bool = False
    peers: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.models:
            models.make(name)
        checks.count(cohort=self.cohort)
        for name in ("rounds", "warmup", "clients"):
            if getattr(self, name) is not None:
                checks.count(**{name: getattr(self, name)})
        for name in self.models:
            needed = self.before(name) + (self.rounds or ROUNDS[name]) + 1
            if self.planned < needed:
                raise PlanError(f"planned={self.planned} rounds end before the {needed} that are run: plan more")

    def before(self, name: str) -> int:
        """Rounds of this model that are not counted."""
        return self.warmup or WARMUP[name]


def simulate(settings: Settings, say: Say) -> dict[str, Any]:
    """Measures every model; ``say`` hears how far it is. Returns what the JSON file holds."""
    result: dict[str, Any] = {
        "what": "simulate",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine.describe(),
        "planned": settings.planned,
        "cold": settings.cold,
        "clients": settings.clients,
        "models": {},
        "left_out": {},
    }
    for name in settings.models:
        data = models.data(name, settings.clients, settings.cohort)
        rounds = settings.rounds or ROUNDS[name]
        say(f"{name}: {len(data)} clients, {data.cohort} a round, {data.source}; {rounds} paired rounds")
        try:
            result["models"][name] = one_model(name, data, rounds, settings, say)
        except EngineError as error:
            # Minutes of measuring other models are not thrown away.
            say(f"  {name} is left out: {error}")
            result["left_out"][name] = str(error)
    if not result["models"]:
        raise EngineError("; ".join(result["left_out"].values()))
    return result


def one_model(name: str, data: Workload, rounds: int, settings: Settings, say: Say) -> dict[str, Any]:
    """Paired rounds of one model, and its floor."""
    cohort, before = Uniform(data.cohort), settings.before(name)
    with ExitStack() as stack:
        entrants = []
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if settings.cold else None
        for child in _children(name, settings, folder):
            try:
                entrants.append(stack.enter_context(child))
            except (EngineError, OSError) as error:
                if child.name not in settings.peers:
                    raise
                say(f"  {child.name} is left out: {error}")
                continue
            with PeakMemory(child.pid) as memory:
                for number in range(1, before + 1):
                    child.round(number, cohort.sample(len(data), 0, number).tolist())
            child.peak = memory.peak
            say(f"  {child.name}: ready after {child.setup:.1f} s, first round {child.seconds[0]:.1f} s")
        steps, row = [], min(rounds, ROW.get(name, 1))
        numbers = range(before + 1, before + rounds + 1)
        for turn, at in enumerate(range(0, rounds, row)):
            asked = [(number, cohort.sample(len(data), 0, number)) for number in numbers[at : at + row]]
            steps += [data.steps(places) for _, places in asked]
            # Whoever goes second finds the machine as the first has left it: they take turns at that too.
            for child in entrants[::-1] if turn % 2 else entrants:
                for number, places in asked:
                    child.round(number, places.tolist())
        last = before + rounds + 1
        for child in entrants:  # untimed, because looking at memory costs time
            with PeakMemory(child.pid) as memory:
                child.round(last, cohort.sample(len(data), 0, last).tolist(), count=False)
            child.peak = max(child.peak, memory.peak)
        yardstick = entrants[0]
        return {
            "clients": len(data), "cohort": data.cohort, "source": data.source, "rounds": rounds,
            "steps": float(np.mean(steps)), "parameters": floor.COUNTS[name].parameters,
            "floor": floor.measured(name),
            "row": row,
            "entrants": {child.name: _figures(child, yardstick, before, steps, row) for child in entrants},
        }  # fmt: skip


def _children(name: str, settings: Settings, caches: str | None) -> list[Child]:
    """The loop first. ``caches`` is an empty folder in the place of the user's, or None."""
    places = {} if caches is None else {"XDG_CACHE_HOME": caches, "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
    size = ["--cohort", str(settings.cohort)]
    if settings.clients is not None:
        size += ["--clients", str(settings.clients)]
    own = [sys.executable, "-m", "insitu.bench.entrant"]
    engine = [] if settings.engine is None else ["--engine", settings.engine]
    options = ["--settings", json.dumps(dict(settings.options)), "--rounds", str(settings.planned)]
    return [
        Child("loop", [*own, "loop", name, *size]),
        Child("insitu", [*own, "insitu", name, *size, *engine, *options], places),
        *(Child(peer, [*command, name, *size]) for peer, command in settings.peers.items()),
    ]


def _figures(child: Child, yardstick: Child, warmup: int, steps: Sequence[int], row: int) -> dict[str, Any]:
    seconds, cpu = child.seconds[warmup:], child.cpu[warmup:]
    theirs = yardstick.seconds[warmup:]
    pairs = [sum(seconds[at : at + row]) / sum(theirs[at : at + row]) for at in range(0, len(seconds), row)]
    least, most = np.percentile(pairs, [25, 75])
    return {
        "wall_ratio": statistics.median(pairs),
        "wall_ratio_quartiles": [float(least), float(most)],
        # The kernel counts CPU in ticks of 10 ms, so a quick round's alone says little.
        "cpu_ratio": sum(cpu) / max(sum(yardstick.cpu[warmup:]), 0.01),
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.mean(cpu),
        "cpu_ms_per_step": 1000 * sum(cpu) / sum(steps),
        "first_round_seconds": child.seconds[0],
        "start_seconds": max(0.0, child.seconds[0] - statistics.median(seconds)),
        "peak_pss_bytes": child.peak,
        "loss": child.answer.get("loss"),
        "about": child.answer.get("about", {}),
    }


def write(result: Mapping[str, Any], path: Path) -> None:
    """The result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
