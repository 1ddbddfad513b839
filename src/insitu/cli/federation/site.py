"""``insitu site``: what a site's administrator does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

site = typer.Typer(
    name="site", no_args_is_help=True, help="Join a federation with data that stays here.", rich_markup_mode=None
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder, which `insitu site join` made.")]
