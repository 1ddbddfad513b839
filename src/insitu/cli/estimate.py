"""``insitu estimate``: what a run will take, before it is run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from insitu.cli import screen
from insitu.core.part import to_json

if TYPE_CHECKING:
    from insitu.estimate import Cost, Estimate


def estimate(
    file: Annotated[Path, typer.Argument(help="The configuration file.")] = Path("insitu.toml"),
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a key; may be given again.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="auto, inline, vectorized, … (run.engine)")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds in all (run.rounds)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Predict what a run will take, from its first rounds. Nothing is stored."""
    from insitu.config import load, toml
    from insitu.estimate import Cost
    from insitu.estimate import estimate as predict

    flags = {"engine": engine, "rounds": rounds}
    given = [*(changes or []), *(f"run.{key}={toml.value(said)}" for key, said in flags.items() if said is not None)]
    began = time.monotonic()
    built = load(file, given).build()
    # What it took to import everything and to read the data is paid by every run, so it belongs to the start.
    reading = Cost(time.monotonic() - began, time.process_time())
    options = {key: value for key, value in built.options.items() if key != "store"}
    stored = built.options["store"] is not None
    found = predict(built.plan, built.clients, evaluate=built.evaluate, stored=stored, **options)
    found = replace(found, start=reading + found.start)
    if as_json:
        typer.echo(json.dumps(json.loads(to_json(found.plain())), indent=1))
    else:
        _show(found)


def _show(found: Estimate) -> None:
    from insitu.observe.table import Screen

    shown = Screen()
    engine = found.choices.get("engine", "")
    shown.heading(f"{found.rounds} rounds, engine {engine}; from {found.measured} measured")
    rows = [("start and end", found.start), (f"{found.rounds} rounds", found.round * found.rounds)]
    if found.evaluations:
        rows.append((f"{found.evaluations} evaluations", found.evaluation * found.evaluations))
    rows.append(("all", found.total))
    shown.table(("", "wall", "CPU"), [_row(name, cost) for name, cost in rows], strong=len(rows) - 1)
    memory = "unknown on this system" if found.peak_memory is None else screen.size(found.peak_memory)
    shown.line(f"peak memory  {memory}")
    shown.line(f"sent up      {screen.size(found.bytes_up)}")
    shown.line(f"sent down    {screen.size(found.bytes_down)}")


def _row(name: str, cost: Cost) -> tuple[str, str, str]:
    return name, duration(cost.seconds), duration(cost.cpu_seconds)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``0.42 s``, ``37 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
