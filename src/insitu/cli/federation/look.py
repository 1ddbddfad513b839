"""``insitu status`` and ``insitu watch``: what is going on in a federation, and why it is waiting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from insitu.cli.federation.places import FederationPath, connected
from insitu.cli.guard import WRONG

if TYPE_CHECKING:
    from insitu.federation.operator import Operator

ENDED = ("finished", "stopped", "failed")
WAIT = 10.0
"""Seconds that a request for news is held open."""
AGAIN = 2.0
"""Seconds before a coordinator that is away is asked again."""

MaybeRun = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run's id, the beginning of it, or `last`; all where left out.")
]


def status(
    run: MaybeRun = None,
    federation: FederationPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what is going on, and why a run is waiting: for whom, since when, until when."""
    from insitu.core.part import to_json
    from insitu.federation import status as said

    with connected(federation) as operator:
        if run is not None:
            told = operator.run(run)
            typer.echo(to_json(told) if as_json else "\n".join(said.lines(told)))
            return
        whole = operator.get("/v1/status")
        runs = [operator.run(one["run"]) for one in whole["runs"] if one["status"] not in ENDED]
    typer.echo(to_json({**whole, "runs": runs}) if as_json else "\n".join(said.whole_lines(whole, runs)))


def watch(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id, the beginning of it, or `last`.")] = "last",
    federation: FederationPath = None,
) -> None:
    """Watch a run until it has ended: a live screen on a terminal, lines elsewhere. Ctrl-C leaves it running."""
    with connected(federation) as operator:
        follow_run(operator, run)


def follow_run(operator: Operator, run: str) -> None:
    """Shows a run until it has ended; a coordinator that goes away meanwhile is waited for."""
    from insitu.cli.federation.screen import Watch

    told = operator.run(run)
    with Watch() as screen:
        try:
            told = _followed(operator, told, screen)
        except KeyboardInterrupt:
            typer.echo(f"the run goes on; `insitu watch {told['run']}` looks again", err=True)
            return
    typer.echo("\n".join(_end(told)))
    if told["status"] == "failed":
        raise typer.Exit(WRONG)


def _followed(operator: Operator, told: dict[str, Any], screen: Any) -> dict[str, Any]:
    from insitu.core.errors import EngineError, Refusal
    from insitu.engines.https.codes import RETRY

    after = 0
    while True:
        try:
            told = operator.run(told["run"])
            ended = told["status"] in ENDED
            screen.show(told)
            events, after = operator.events(told["run"], after, 0.0 if ended else screen.patience(WAIT))
            screen.events(events)
            if ended and not events:
                return told
        except (EngineError, Refusal) as error:
            if isinstance(error, Refusal) and error.code not in RETRY:
                raise
            screen.away(str(error))
            time.sleep(AGAIN)


def _end(told: dict[str, Any]) -> list[str]:
    from insitu.federation.status import last

    text = f"{told['run']} {told['status']}: {told['committed']} of {told['of']} rounds"
    if told["history"]:
        text += f"; {last(told['history'])}"
    return [text, *([f"because: {told['reason']}"] if told["reason"] else [])]
