"""``insitu show``: everything about one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from insitu.cli import screen, stores
from insitu.core.errors import StoreError

if TYPE_CHECKING:
    from insitu.cli.story import Story

HEAD, TAIL, FAILURES, CLIENTS = 3, 12, 10, 30
"""How much is shown without --all: first and last rounds, failures, clients."""
_SPREAD = ("_p10", "_p50", "_p90")


def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id, the beginning of it, or `last`.")
    ] = stores.LAST,
    store: stores.StorePath = stores.DEFAULT,
    clients: Annotated[bool, typer.Option("--clients", help="Metrics by client, the worst first.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All rounds, columns, failures and clients.")] = False,
    toml: Annotated[bool, typer.Option("--toml", help="The configuration it was run with.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the rounds (.png, .svg, .pdf).")] = None,
) -> None:
    """Show a run: its plan, its choices, its rounds, its failures."""
    from insitu.cli import story

    with stores.existing(store) as opened:
        found = story.read(opened, stores.full_id(opened, run))
    if plot is not None:
        from insitu.report.curves import plot_history

        plot_history(found.history, plot, title=f"{_algorithm(found)} · {found.record['id']}")
        typer.echo(f"wrote {plot}")
    elif toml:
        typer.echo(_toml(found), nl=False)
    elif as_json:
        from insitu.store.rows import to_json

        typer.echo(to_json(found.plain()))
    else:
        blocks = [_clients(found, everything)] if clients else _blocks(found, everything)
        typer.echo("\n\n".join(block for block in blocks if block))


def _toml(found: Story) -> str:
    if "toml" not in found.record:
        raise StoreError(f"run {found.record['id']} was started from Python, without a configuration file: see --json")
    return str(found.record["toml"])


def _algorithm(found: Story) -> str:
    return str((found.record.get("config") or {}).get("algorithm", {}).get("name", "?"))


def _blocks(found: Story, everything: bool) -> list[str]:
    record = found.record
    committed, wanted = len(found.history), record.get("rounds")
    head = f"run {record['id']}: {record['status']}, {committed} of {wanted} rounds, {record.get('clients')} clients"
    lines = [head, f"started {screen.moment(record['started'])}, seed {record.get('seed')}"]
    lines += [f"to go on: insitu run FILE --resume {record['id']}"] * (committed < (wanted or 0))
    return [
        "\n".join(lines),
        _pairs({key: screen.part(value) for key, value in (record.get("config") or {}).items() if value}),
        _pairs({key: _joined(record.get(key)) for key in ("engine", "choices", "versions")}),
        _rounds(found, everything),
        _traffic(found),
        _failures(found, everything),
    ]


def _joined(table: dict[str, Any] | None) -> str:
    if table and "name" in table:
        return screen.part(table)
    return ", ".join(f"{key} {value}" for key, value in (table or {}).items())


def _pairs(lines: dict[str, str]) -> str:
    kept = [[key, text] for key, text in lines.items() if text]
    return screen.table(kept, right=2) if kept else ""


def _rounds(found: Story, everything: bool) -> str:
    rows = list(found.history)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not everything:
        names = [n for n in names if not n.startswith("bytes") and not n.endswith(_SPREAD)]
    chosen = _first_and_last([[row.get(name) for name in names] for row in rows], len(rows) if everything else TAIL)
    return screen.table([names, *chosen]) if rows else "no round has been committed"


def _first_and_last(rows: list[list[Any]], last: int) -> list[Sequence[Any]]:
    if len(rows) <= HEAD + last + 1:
        return list(rows)
    return [*rows[:HEAD], ["…"] + [""] * (len(rows[0]) - 1), *rows[-last:]]


def _traffic(found: Story) -> str:
    if not len(found.history):
        return ""
    return f"sent by clients {screen.size(found.bytes_up)}, to clients {screen.size(found.bytes_down)}"


def _failures(found: Story, everything: bool) -> str:
    failures = found.failures
    if not failures:
        return ""
    shown = failures if everything else failures[:FAILURES]
    lines = [f"{len(failures)} failure{'s' if len(failures) > 1 else ''} of clients"]
    lines += [f"  round {one['round']}, client {one['client']!r}: {one['error']}" for one in shown]
    if len(failures) > len(shown):
        lines.append(f"  … and {len(failures) - len(shown)} more (--all)")
    return "\n".join(lines)


def _clients(found: Story, everything: bool) -> str:
    if not found.clients:
        return f"run {found.record['id']} has no metrics of clients yet"
    names = list(dict.fromkeys(name for own in found.clients.values() for name in own))
    ordered = sorted(found.clients.items(), key=lambda item: _badness(item[1]), reverse=True)
    shown = ordered if everything else ordered[:CLIENTS]
    text = screen.table(
        [["client", *names], *([client, *(own.get(n) for n in names)] for client, own in shown)], right=1
    )
    return text + (f"\n… and {len(ordered) - len(shown)} more (--all)" if len(ordered) > len(shown) else "")


def _badness(own: dict[str, Any]) -> float:
    """How bad it is for this client, by what is known: held-out accuracy, held-out loss, then training's."""
    for name, sign in (("accuracy", -1), ("loss", 1), ("train_accuracy", -1), ("train_loss", 1)):
        if own.get(name) is not None:
            return float(sign * own[name])
    return float("-inf")
