"""``insitu federation``: a federation is founded, and who belongs to it is decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from insitu.cli import screen
from insitu.cli.federation.entries import line, moment
from insitu.cli.federation.places import FederationPath

if TYPE_CHECKING:
    from insitu.federation.house import House

federation = typer.Typer(
    name="federation", no_args_is_help=True, help="Found a federation; invite sites to it and shut them out.",
    rich_markup_mode=None,
)  # fmt: skip


@federation.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="The federation's folder, named as it is.")],
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="How sites reach the coordinator; may be given again. Default: localhost."),
    ] = None,
    port: Annotated[int, typer.Option(help="The coordinator's port.")] = 8443,
) -> None:
    """Found a federation: a certificate authority, the coordinator's certificate, the first operator's, settings."""
    from insitu.federation.founding import found

    made = found(folder, host or ["localhost", "127.0.0.1"], port)
    typer.echo(f"wrote {folder}/: federation {made.name}, reached at {', '.join(made.urls())}")
    typer.echo(f"now: insitu coordinator {folder}")
    typer.echo(f"and: insitu federation invite SITE --federation {folder}")


@federation.command()
def invite(
    name: Annotated[str, typer.Argument(help="What the site, or the person, is called.")],
    role: Annotated[str, typer.Option(help="site, operator or viewer.")] = "site",
    days: Annotated[float, typer.Option(help="For how long the invitation is good.")] = 2.0,
    federation: FederationPath = None,
) -> None:
    """Print a one-time token, with which NAME gets a certificate. Send it by a way that others do not read."""
    with _house(federation) as house:
        token, expires = house.invite(name, role, days * 86400)
    typer.echo(token)
    join = "insitu site join --token … --data site.toml" if role == "site" else "insitu federation join --token …"
    typer.echo(f"for {role} {name}, once, until {moment(expires)}: {join}", err=True)


@federation.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Who is shut out.")],
    federation: FederationPath = None,
) -> None:
    """Shut a member out: its certificate counts no more, connected or not."""
    with _house(federation) as house:
        house.revoke(name)
    typer.echo(f"{name} is revoked")


@federation.command()
def members(
    federation: FederationPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List who belongs to the federation."""
    from insitu.core.part import to_json

    with _house(federation) as house:
        found = house.members()
    if as_json:
        typer.echo(to_json(found))
        return
    header = ["name", "role", "enrolled", "seen", "state"]
    typer.echo(screen.table([header, *map(_row, found)], right=len(header)))


def _row(member: dict[str, Any]) -> list[str]:
    state = "connected" if member["connected"] else ""
    if member["revoked"] is not None:
        state = f"revoked {moment(member['revoked'])}"
    seen = "" if member["seen"] is None else moment(member["seen"])
    return [member["name"], member["role"], moment(member["enrolled"]), seen, state]


@federation.command()
def audit(
    federation: FederationPath = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check that no entry was changed or taken away.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """Print who did what, in order; or check that nothing in it was changed since."""
    from insitu.core.part import to_json

    with _house(federation) as house:
        if verify:
            typer.echo(house.verified())
            return
        for entry in house.entries():
            typer.echo(to_json(entry) if as_json else line(entry))


@federation.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id, the beginning of it, or `last`.")] = "last",
    federation: FederationPath = None,
) -> None:
    """Check that a run's committed rounds were not changed since; fold again what is kept. Works in FOLDER itself."""
    from insitu.federation.house import verified

    verdict = verified(federation, run)
    for sentence in verdict.holds:
        typer.echo(sentence)
    if verdict.broken:
        typer.echo(f"broken: {verdict.broken}", err=True)
        raise typer.Exit(1)


@federation.command()
def renew(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The federation's folder.")] = Path("."),
    host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Other names than it has now; may be given again.")
    ] = None,
) -> None:
    """Make the coordinator a new certificate. A running one takes it up by itself on SIGHUP."""
    from insitu.federation.certificates import renewed

    typer.echo(renewed(folder, host))


@federation.command("rotate-ca")
def rotate_ca(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The federation's folder.")] = Path("."),
    finish: Annotated[
        bool, typer.Option("--finish", help="End the old authority, once every member has renewed its certificate.")
    ] = False,
) -> None:
    """Replace the certificate authority without a break: a second one is trusted beside the first, until --finish."""
    from insitu.federation.certificates import finished, rotated

    typer.echo(finished(folder) if finish else rotated(folder))


@federation.command()
def join(
    token: Annotated[str, typer.Option(help="What `insitu federation invite --role operator` printed.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for key and certificate.")] = Path(
        "operator"
    ),
) -> None:
    """Become an operator or a viewer: makes a key here, gets a certificate for it, and keeps both in FOLDER."""
    from insitu.federation.operator import join as enrol

    name, role = enrol(token, folder)
    typer.echo(f"wrote {folder}/: {role} {name}; now: insitu status --federation {folder}")


def _house(path: Path | None) -> House:
    """The federation's house-keeping: by the coordinator where one runs, else in the folder itself."""
    from insitu.federation.folder import found
    from insitu.federation.house import house_of

    return house_of(found(path))
