"""``insitu partition``: who would have which examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from insitu.core.errors import ConfigError

if TYPE_CHECKING:
    from insitu.config import Config


def partition(
    file: Annotated[Path | None, typer.Argument(help="A configuration file; or else --source.")] = None,
    source: Annotated[str | None, typer.Option(help="A data set, or file.py:function (data.source)")] = None,
    name: Annotated[str | None, typer.Option(help="dirichlet, shards, iid, … (data.partition.name)")] = None,
    clients: Annotated[int | None, typer.Option(help="How many clients (data.partition.clients)")] = None,
    alpha: Annotated[float | None, typer.Option(help="Concentration of a Dirichlet (data.partition.alpha)")] = None,
    seed: Annotated[int | None, typer.Option(help="data.partition.seed")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a key; may be given again.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it (.png, .svg, .pdf).")] = None,
) -> None:
    """Describe who would have which examples."""
    from insitu.config import toml

    if file is None and source is None:
        raise ConfigError(
            "partition needs a configuration file or --source: insitu partition --source digits --name iid"
        )
    flags: dict[str, Any] = {"source": source, "partition.name": name, "partition.clients": clients}
    flags |= {"partition.alpha": alpha, "partition.seed": seed}
    given = [f"data.{key}={toml.value(value)}" for key, value in flags.items() if value is not None]
    found, _ = _config(file, [*given, *(changes or [])]).population()
    if not hasattr(found, "describe"):
        raise ConfigError(f"the source gives {type(found).__name__}, which cannot be described: return Clients")
    typer.echo(str(found.describe()))
    if picture is not None:
        found.plot(picture)
        typer.echo(f"\nwrote {picture}")


def _config(file: Path | None, changes: list[str]) -> Config:
    from insitu.config import load, of_tables
    from insitu.config.place import Place

    if file is not None:
        return load(file, changes)
    # Only [data] is looked at; the others have to be there.
    tables = {"run": {"rounds": 1}, "data": {}, "algorithm": {"name": "fedavg"}}
    return of_tables(tables, changes, Place("the command line", Path.cwd()))
