"""``insitu coordinator``: the process that sites connect to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def coordinator(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The federation's folder.")] = Path("."),
) -> None:
    """Coordinate a federation until SIGTERM or Ctrl-C. A second one on the same PostgreSQL waits as a standby."""
    from insitu.engines.https.serve import arenas
    from insitu.federation.coordinator import Coordinator
    from insitu.federation.folder import Folder

    arenas.few()
    code = Coordinator(Folder(folder)).serve()
    if code:
        raise typer.Exit(code)
