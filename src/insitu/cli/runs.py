"""``insitu runs``: what is in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from insitu.cli import screen, stores


def runs(
    store: stores.StorePath = stores.DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    federation: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="List a federation's runs: its folder, or an operator's.")
    ] = None,
) -> None:
    """List the runs in a store, or of a federation, newest first."""
    if federation is not None:
        _of_federation(federation, as_json)
        return
    with stores.existing(store) as opened:
        found = [{**one, "wanted": opened.record(one["id"]).get("rounds")} for one in opened.runs()]
    if as_json:
        from insitu.store.rows import to_json

        typer.echo(to_json(found))
    elif not found:
        typer.echo(f"{store} has no runs yet")
    else:
        header = ["run", "started", "status", "algorithm", "learner", "rounds", "last metrics"]
        typer.echo(screen.table([header, *map(_row, found)], right=len(header)))


def _of_federation(folder: Path, as_json: bool) -> None:
    from insitu.cli.federation.entries import moment
    from insitu.cli.federation.places import connected
    from insitu.core.part import to_json

    with connected(folder) as operator:
        found = operator.runs()
    if as_json:
        typer.echo(to_json(found))
    elif not found:
        typer.echo("this federation has no runs yet: `insitu submit plan.toml` starts one")
    else:
        header = ["run", "submitted", "by", "status", "algorithm", "learner", "rounds", "last metrics"]
        rows = [
            [
                one["run"], moment(one["at"]), one["by"], one["status"],
                *(str(one.get(key) or "").rpartition(":")[2] for key in ("algorithm", "learner")),
                f"{one['rounds']}/{one['of']}", _last(one["metrics"]),
            ]
            for one in found
        ]  # fmt: skip
        typer.echo(screen.table([header, *rows], right=len(header)))


def _row(one: dict[str, Any]) -> list[str]:
    config = one["config"] or {}
    names = [((config.get(key) or {}).get("name") or "").rpartition(":")[2] for key in ("algorithm", "learner")]
    return [
        one["id"], screen.moment(one["started"]), one["status"], *names, f"{one['rounds']}/{one['wanted']}",
        _last(one["metrics"]),
    ]  # fmt: skip


def _last(metrics: dict[str, dict[str, Any]]) -> str:
    """The metrics of the kind that says most: on the central test set, else on clients, else in training."""
    for kind, prefix in (("central", ""), ("clients", "clients' "), ("train", "train "), ("measures", "")):
        if metrics.get(kind):
            return ", ".join(f"{prefix}{name} {screen.figure(value)}" for name, value in metrics[kind].items())
    return ""
