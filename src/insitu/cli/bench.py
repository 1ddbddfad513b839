"""``insitu bench``: how fast it is here, beside a loop written by hand."""

from __future__ import annotations

import json
import shlex
from importlib import util
from pathlib import Path
from typing import Annotated, Any

import typer

from insitu.core.errors import ConfigError, MissingExtra

bench = typer.Typer(name="bench", help="Measure how fast insitu is on this machine.", no_args_is_help=True)

QUICK = {"models": ("lr",), "rounds": 2, "warmup": 1, "planned": 4, "clients": 20, "cohort": 10}
RESULT = Path("runs/bench-simulate.json")


@bench.command()
def simulate(
    models: Annotated[str, typer.Option(metavar="NAME,…", help="Of lr, mlp, cnn, lstm.")] = "lr,mlp,cnn,lstm",
    rounds: Annotated[int | None, typer.Option(help="Paired rounds; by model if not given.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Rounds before those, not counted; by model otherwise.")] = None,
    planned: Annotated[int, typer.Option(help="Rounds that insitu is told the run will have.")] = 500,
    engine: Annotated[str | None, typer.Option(help="insitu's engine; by itself if not given.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of that engine: lanes=16.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PYTHON", help="Run benchmarks/peers/NAME.py with this Python beside it."),
    ] = None,
    output: Annotated[Path, typer.Option("--json", metavar="PATH", help="Where the result is written.")] = RESULT,
    against: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The result to compare with; what --json held if not given.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="insitu starts with empty caches.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="2 rounds of lr on 20 clients: whether it works.")] = False,
) -> None:
    """Time insitu and a sequential PyTorch loop in turn, and print their ratios."""
    chosen: dict[str, Any] = {"models": tuple(models.split(",")), "rounds": rounds, "warmup": warmup}
    chosen |= {"planned": planned, **(QUICK if quick else {}), "engine": engine, "cold": cold}
    chosen |= {"options": _options(settings or [], engine), "peers": dict(map(_peer, peer or []))}
    words = ["insitu bench simulate", "--quick" if quick else f"--models {models}"]
    words += [
        f"--{name} {value}"
        for name, value in (("rounds", rounds), ("warmup", warmup), ("engine", engine))
        if value is not None
    ]
    words += [f"--set {shlex.quote(one)}" for one in settings or []]
    words += [f"--peer {one.partition('=')[0]}=…" for one in peer or []] + ["--cold"] * cold
    _simulate(chosen, output, against, " ".join(words) if markdown else None)


def _simulate(chosen: dict[str, Any], output: Path, against: Path | None, command: str | None) -> None:
    """Measures, prints and writes; ``command`` is what the Markdown shows, None for plain text."""
    _need_torch()
    from insitu.bench import machine, table
    from insitu.bench.simulate import Settings, simulate, write

    # What is to be compared with is read first: measuring takes minutes, and writing may go over it.
    source = against or (output if output.exists() else None)
    before = None if source is None else table.read(source)
    result = simulate(Settings(**chosen), lambda line: typer.echo(line, err=True))
    write(result, output)
    plain = f"{result['date']}; {machine.sentence(result['machine'])}\n\n{table.text(result)}"
    typer.echo(plain if command is None else table.markdown(result, command))
    for line in [] if before is None else table.compare(result, before):
        typer.echo(line)
    typer.echo(f"wrote {output}", err=True)


@bench.command()
def overhead(
    clients: Annotated[int | None, typer.Option(help="Clients in all; 1000, 100 a round, if not given.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of each kind.")] = 30,
) -> None:
    """Time what a round costs beside training."""
    _need_torch()
    from insitu.bench.overhead import overhead as measure
    from insitu.bench.overhead import text

    typer.echo(text(measure(clients, rounds)))


def _need_torch() -> None:
    if util.find_spec("torch") is None:
        raise MissingExtra("torch", "torch", "insitu bench")


def _options(given: list[str], engine: str | None) -> dict[str, Any]:
    """``lanes=16`` as ``{"lanes": 16}``: values are JSON, or text where they are none."""
    if given and engine is None:
        raise ConfigError(f"--set {given[0]} is a setting of an engine: say which with --engine")
    options = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise ConfigError(f"--set {one}: expected KEY=VALUE, such as lanes=16")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _peer(given: str) -> tuple[str, list[str]]:
    name, equals, python = given.partition("=")
    script = Path("benchmarks/peers") / f"{name}.py"
    if not equals or not name.isidentifier():
        raise ConfigError(f"--peer {given}: expected NAME=PYTHON, such as flower=/path/to/venv/bin/python")
    if not script.is_file():
        raise ConfigError(f"--peer {given}: there is no {script}; run this in the project's folder")
    return name, [python, str(script)]
