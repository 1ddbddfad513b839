"""Which federation a command speaks to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from insitu.federation.operator import Operator

FederationPath = Annotated[
    Path | None,
    typer.Option(
        "--federation",
        metavar="FOLDER",
        envvar="INSITU_FEDERATION",
        help="The federation's folder, or an operator's; the current directory where left out.",
    ),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the beginning of it, or `last`.")]


def connected(path: Path | None) -> Operator:
    """A connection to the coordinator, by the certificate in this folder."""
    from insitu.federation.folder import found
    from insitu.federation.operator import Operator

    return Operator(found(path))
