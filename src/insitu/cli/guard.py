"""What becomes of errors: ours are one red line and exit code 2, others are bugs and keep their traceback."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from insitu.core.errors import InsituError

FLAG = "--traceback"
WRONG, INTERRUPTED = 2, 130


class Guarded(TyperGroup):
    """The group of all commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes ``--traceback`` wherever it stands: one adds it to the end of the command that just failed."""
        if FLAG in args:
            args = [FLAG, *(arg for arg in args if arg != FLAG)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; says what went wrong."""
        try:
            return super().invoke(ctx)
        except InsituError as error:
            if ctx.params.get("traceback"):
                traceback.print_exc()
            else:
                say_error(str(error))
            raise typer.Exit(WRONG) from error
        except KeyboardInterrupt as error:
            say_error("stopped at once; committed rounds are in the store, and --resume goes on from there")
            raise typer.Exit(INTERRUPTED) from error


def say_error(text: str) -> None:
    """One red line on stderr."""
    coloured = False if os.environ.get("NO_COLOR") else None
    sys.stdout.flush()
    typer.secho(f"error: {text}", fg=typer.colors.RED, err=True, color=coloured)
