"""``insitu submit``, ``stop``, ``pause``, ``resume``, ``model``: what an operator orders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from insitu.cli.federation.places import FederationPath, Run, connected


def submit(
    file: Annotated[Path, typer.Argument(help="The plan's file, as `insitu run` takes it.")] = Path("insitu.toml"),
    federation: FederationPath = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a key; may be given again.")
    ] = None,
    name: Annotated[str, typer.Option(help="A word about it, for the audit log.")] = "",
    follow: Annotated[bool, typer.Option("--watch", help="Watch it until it has ended.")] = False,
) -> None:
    """Start a run in a federation. The sites bring the data: [data] of the file is left out."""
    from insitu.cli.federation.look import follow_run
    from insitu.federation import tables

    told, notices = tables.read(file, changes or [])
    for notice in notices:
        typer.echo(notice, err=True)
    with connected(federation) as operator:
        run = operator.submit(told, name)
        typer.echo(run)
        if follow:
            follow_run(operator, run)


def stop(run: Run = "last", federation: FederationPath = None) -> None:
    """Stop a run for good, in the middle of its round; committed rounds are kept."""
    _order(run, "stop", federation)


def pause(run: Run = "last", federation: FederationPath = None) -> None:
    """Hold a run where it is, until `insitu resume`."""
    _order(run, "pause", federation)


def resume(run: Run = "last", federation: FederationPath = None) -> None:
    """Go on with a run that was paused, stopped, or has failed."""
    _order(run, "resume", federation)


def _order(run: str, order: str, federation: Path | None) -> None:
    with connected(federation) as operator:
        run = str(operator.run(run)["run"])
        typer.echo(f"run {run}: {operator.order(run, order)}")


def model(
    run: Run = "last",
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where it is written, as NumPy's .npz.")] = Path(
        "model.npz"
    ),
    federation: FederationPath = None,
) -> None:
    """Fetch a run's model: its arrays by role and name, after the last committed round."""
    import numpy as np

    from insitu.core import tree, wire

    with connected(federation) as operator:
        status = operator.run(run)
        found = wire.decode(operator.bytes(f"/v1/runs/{status['run']}/model"))
    arrays = {path: np.asarray(leaf) for path, leaf in tree.leaves(found)}
    with to.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes the names for its own flag
    typer.echo(f"wrote {to}: {len(arrays)} arrays of run {status['run']} after round {status['committed']}")


def predict(
    data: Annotated[Path, typer.Option(metavar="FILE", help="The examples, an array [n, …] as NumPy's .npy.")],
    run: Run = "last",
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where predictions go, as .npy.")] = Path("y.npy"),
    federation: FederationPath = None,
) -> None:
    """Predict by a run's model. Where it is its sites' data (knn), all of them are asked."""
    import numpy as np

    from insitu.core.errors import DataError

    try:
        x = np.load(data, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{data} is no array that can be read: {error}: write it with numpy.save") from error
    with connected(federation) as operator:
        run = str(operator.run(run)["run"])
        y = np.asarray(operator.predict(run, x))
    np.save(to, y, allow_pickle=False)
    typer.echo(f"wrote {to}: {len(y)} predictions of run {run}")
