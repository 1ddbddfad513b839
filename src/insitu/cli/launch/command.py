"""``insitu launch``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from insitu.core import checks
from insitu.core.errors import ConfigError


def launch(
    file: Annotated[Path, typer.Argument(help="The configuration file.")] = Path("insitu.toml"),
    workers: Annotated[int | None, typer.Option(help="How many ranks; 2 by default, with --slurm a node's.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a key; may be given again.")
    ] = None,
    restarts: Annotated[int, typer.Option(help="How often to go on after a worker has died.")] = 3,
    min_workers: Annotated[
        int | None, typer.Option(help="Go on with one worker less each time, down to so many. Default: with as many.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds without a sign of life until a worker counts as dead; 60 by default.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Where the workers meet; any free one by default.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Print a script for sbatch, and start nothing.")] = False,
    nodes: Annotated[int, typer.Option(help="With --slurm: how many machines.")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster; `local` starts one.")
    ] = None,
) -> None:
    """Run a configuration on several processes that share its clients. After a death it goes on by itself."""
    count = 2 if workers is None else workers
    checks.count(workers=count)
    checks.count(nodes=nodes)
    checks.not_negative(restarts=restarts)
    if timeout is not None:
        checks.positive(timeout=timeout)
    if min_workers is not None and not 1 <= min_workers <= count:
        raise ConfigError(f"--min-workers {min_workers} is not between 1 and --workers {count}: give another")
    if slurm and ray is not None:
        raise ConfigError("--slurm and --ray both say where: give one of them")
    if not file.exists():
        raise ConfigError(f"{file} is not there: give the configuration's path, or make one with insitu new")
    given = _on_ranks(file, changes or [], timeout)
    if slurm:
        from insitu.cli.launch.slurm import script

        typer.echo(script(file, given, nodes, count, restarts), nl=False)
        return
    if ray is not None:
        from insitu.cli.launch.on_ray import run_on_ray

        run_on_ray(ray, file, given, count, restarts, timeout or 60.0)
        return
    from insitu.cli.launch.workers import Launcher

    raise typer.Exit(Launcher(file, given, count, min_workers or count, restarts, port).run())


def _on_ranks(file: Path, changes: list[str], timeout: float | None) -> list[str]:
    """The changes, and those that make the engine ``spmd``, whose settings in the file are kept.

    What is wrong with the configuration is said here, and not by every worker.
    """
    from insitu.config import load, toml

    said = load(file, changes).run.engine
    engine = dict(said) if isinstance(said, dict) and said.get("name") == "spmd" else {"name": "spmd"}
    if timeout is not None:
        engine["timeout"] = timeout
    given = [*changes, f"run.engine={toml.value(engine)}"]
    config = load(file, given)
    config.plan()
    config.engine()
    return given
