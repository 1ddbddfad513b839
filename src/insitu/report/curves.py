"""A run's history as curves."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

from insitu.history import History
from insitu.report.figures import BLUE, GREEN, GREY, ORANGE, figure, legend, plain_axes, saved

NOT_METRICS = {"round", "clients", "failed", "seconds", "bytes_up", "bytes_down"} | {
    "clock", "simulated_seconds", "available", "asked", "late", "dropped", "simulated_bytes_down", "simulated_bytes_up",
}  # fmt: skip
OF_CLIENTS = ("worst10", "p10", "p50", "p90")
SIDES = (("", "test set", BLUE), ("clients_", "clients' own", GREEN), ("train_", "training", ORANGE))
UNITS = ("B", "kB", "MB", "GB", "TB")


def plot_history(history: History, path: str | Path | None = None, title: str = "") -> Any:
    """A panel for each metric (test set, clients' held-out parts with their middle 80 %, training) and one of bytes.

    Returns the matplotlib Figure; writes it to ``path`` (.png, .svg, .pdf) where one is given. What was not measured is
    not drawn. Raises MissingExtra where matplotlib is not installed.
    """
    metrics = metric_names(history)
    columns = len(metrics) + 1
    drawn = figure(max(4.4 * columns, 6), 3.6)
    for i, name in enumerate(metrics):
        axes = plain_axes(drawn.add_subplot(1, columns, i + 1), title=name, x="round", y="")
        _metric(axes, history, name)
    _bytes(drawn.add_subplot(1, columns, columns), history)
    for axes in drawn.axes:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if title:
        drawn.suptitle(title, fontsize=12, color=GREY)
    return saved(drawn, path)


def metric_names(history: History) -> list[str]:
    """What was measured, without the side on which it was: loss first, four at most."""
    found: dict[str, None] = {}
    for row in history:
        for column, value in row.items():
            if column in NOT_METRICS or column.rpartition("_")[2] in OF_CLIENTS or not _is_figure(value):
                continue
            found[column.removeprefix("clients_").removeprefix("train_")] = None
    return sorted(found, key=lambda name: name != "loss")[:4]


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _metric(axes: Any, history: History, name: str) -> None:
    curves = [(prefix, label, colour, *history.column(prefix + name)) for prefix, label, colour in SIDES]
    measured = [curve for curve in curves if curve[3]]
    for prefix, label, colour, rounds, values in measured:
        (low_at, low), (high_at, high) = (history.column(f"{prefix}{name}_{p}") for p in ("p10", "p90"))
        if low and low_at == high_at:
            axes.fill_between(low_at, low, high, color=colour, alpha=0.15, linewidth=0, label="middle 80 % of clients")
        # A single curve without a side is what the algorithm measures of itself: its title says all.
        said = None if len(measured) == 1 and not prefix and name not in ("loss", "accuracy") else label
        axes.plot(rounds, values, color=colour, linewidth=1.8, label=said, marker="o" if len(rounds) < 3 else None)
    legend(axes)


def _bytes(axes: Any, history: History) -> None:
    """Up and down, summed over rounds. Down is dashed, since often the two are the same."""
    columns = {name: history.column(name) for name in ("bytes_up", "bytes_down")}
    most = max((sum(values) for _, values in columns.values()), default=0)
    scale = next((i for i in range(len(UNITS)) if most < 1000 ** (i + 1)), len(UNITS) - 1)
    plain_axes(axes, title="bytes sent", x="round", y=f"{UNITS[scale]}, all rounds so far")
    looks = {"bytes_up": ("by clients", BLUE, "-"), "bytes_down": ("to clients", ORANGE, "--")}
    for name, (label, colour, line) in looks.items():
        rounds, values = columns[name]
        sums = [total / 1000**scale for total in accumulate(values)]
        axes.plot(rounds, sums, color=colour, linewidth=1.8, linestyle=line, label=label)
    axes.set_ylim(bottom=0)
    legend(axes)
