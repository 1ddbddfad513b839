"""``insitu site``: what a site's administrator does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from insitu.cli import screen

site = typer.Typer(
    name="site", no_args_is_help=True, help="Take part in a federation with data that stay here.", rich_markup_mode=None
)

SiteFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder, which `insitu site join` made.")]


@site.command()
def join(
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="https://host:8443, if not as the token says.")
    ] = None,
    token: Annotated[str, typer.Option(help="What `insitu federation invite` printed.")] = ...,  # type: ignore[assignment]
    data: Annotated[Path, typer.Option(metavar="FILE", help="The site.toml: which data, and what is allowed.")] = Path(
        "site.toml"
    ),
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="A new folder for the site's key, certificate and state.")
    ] = Path("site"),
) -> None:
    """Join a federation: makes the site's key here, gets its certificate, and keeps both in FOLDER."""
    from insitu.federation import site as sites

    if url is not None and "://" not in url:
        url, folder = None, Path(url)
    name = sites.join(url, token, data, folder)
    typer.echo(f"wrote {folder}/: site {name}")
    typer.echo(f"now: insitu site run {folder}")


@site.command()
def run(folder: SiteFolder = Path("site")) -> None:
    """Take part until SIGTERM or Ctrl-C: ask for work, do what site.toml allows, send what comes of it."""
    from insitu.federation import site as sites

    sites.run(folder)


@site.command()
def status(
    folder: SiteFolder = Path("site"),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what the site is doing, and how much has left it; whether it runs or not."""
    from insitu.core.part import to_json
    from insitu.federation import site as sites

    told = sites.status(folder)
    typer.echo(to_json(told) if as_json else "\n".join(_lines(told)))


def _lines(told: dict[str, Any]) -> list[str]:
    rows = [[key.replace("_", " "), _plain(value)] for key, value in told.items() if value not in (None, "", [], {})]
    return [screen.table(rows, right=2)]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {screen.figure(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return screen.figure(value)


@site.command()
def audit(
    folder: SiteFolder = Path("site"),
    verify: Annotated[bool, typer.Option("--verify", help="Check that no entry was changed or taken away.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """Print what was asked of this site and what left it; or check that nothing in it was changed since."""
    from insitu.cli.federation.entries import line
    from insitu.core.errors import StoreError
    from insitu.core.part import to_json
    from insitu.federation import site as sites

    if verify:
        broken = sites.verify(folder)
        if broken is not None:
            raise StoreError(f"the audit log was changed: {broken.why}")
        entries = list(sites.audit(folder))
        last = f"; the last hash is {entries[-1]['hash']}" if entries else ""
        typer.echo(f"{len(entries)} entries, none changed{last}")
        return
    for entry in sites.audit(folder):
        typer.echo(to_json(entry) if as_json else line(entry))


@site.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The site.toml.")] = Path("site.toml"),
) -> None:
    """Read a site.toml and its data, and say what the coordinator would be told of them."""
    from insitu.core.part import to_json
    from insitu.federation import site as sites

    declared, _ = sites.check(file)
    typer.echo(f"{file} is good; the coordinator is told: {to_json(declared)}")
