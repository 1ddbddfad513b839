"""``insitu``: the application and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from insitu.cli.bench import bench
from insitu.cli.demo import demo
from insitu.cli.estimate import estimate
from insitu.cli.federation.coordinator import coordinator
from insitu.cli.federation.group import federation
from insitu.cli.federation.look import status, watch
from insitu.cli.federation.orders import model, pause, predict, resume, stop, submit
from insitu.cli.federation.site import site
from insitu.cli.guard import Guarded
from insitu.cli.launch import launch
from insitu.cli.new import new
from insitu.cli.partition import partition
from insitu.cli.run import run
from insitu.cli.runs import runs
from insitu.cli.show import show
from insitu.version import __version__

app = typer.Typer(
    name="insitu",
    cls=Guarded,
    help="Trains one model on data that stays where it is.",
    no_args_is_help=True,
    # A traceback in a box hides what a bug report needs.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (new, run, launch, estimate, runs, show, partition, demo):
    app.command()(command)
app.add_typer(bench)
app.add_typer(federation)
app.add_typer(site)
for command in (coordinator, submit, status, watch, stop, pause, resume, model, predict):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"insitu {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar="INSITU_TRACEBACK", help="Show the whole traceback of an error.")
    ] = False,
) -> None:
    """Trains one model on data that stays where it is."""
