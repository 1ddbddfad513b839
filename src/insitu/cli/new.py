"""``insitu new``: a project to start from."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Annotated

import typer

from insitu.cli.project import files
from insitu.core.errors import ConfigError


def new(name: Annotated[Path, typer.Argument(metavar="NAME", help="The project's folder.")]) -> None:
    """Write a small project that runs as it is."""
    if name.exists() and not name.is_dir():
        raise ConfigError(f"{name} is a file: give the name of a folder that is not there yet")
    if name.is_dir() and any(name.iterdir()):
        raise ConfigError(f"{name} is there already and not empty: give another name")
    texts = files(name.resolve().name, torch=util.find_spec("torch") is not None)
    try:
        name.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (name / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name} cannot be written: {error.strerror}: give another folder") from error
    typer.echo(f"wrote {', '.join(str(name / file) for file in sorted(texts))}")
    typer.echo(f"now: cd {name} && insitu run" if str(name) != "." else "now: insitu run")
