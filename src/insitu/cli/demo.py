"""``insitu demo``: the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    rounds: Annotated[int | None, typer.Option(help="How many rounds; as many as it takes by default.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write what it makes.")] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", envvar="INSITU_NO_BROWSER", help="Open no browser at the end.")
    ] = False,
) -> None:
    """Run the demonstration."""
    from insitu.demo import main

    given = {"rounds": rounds, "out": out}
    main(browser=not no_browser, **{key: value for key, value in given.items() if value is not None})
