"""A run's history as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from insitu.history import History
from insitu.report.figures import BLUE, GREEN, GREY, ORANGE, figure, plain_axes, saved

NOT_METRICS = {"round", "clients", "failed", "seconds", "bytes_up", "bytes_down"}
SIDES = (("", "test set", BLUE), ("clients_", "clients' own", GREEN), ("train_", "training", ORANGE))


def plot_history(history: History, path: str | Path | None = None, title: str = "") -> Any:
    """A panel for each metric (test set, clients' held-out parts with their middle 80 %, training) and one of bytes.

    Returns the matplotlib Figure; writes it to ``path`` where one is given.
    """
    metrics = metric_names(history)
    columns = len(metrics) + 1
    drawn = figure(4.2 * columns, 3.6)
    for i, name in enumerate(metrics):
        _metric(plain_axes(drawn.add_subplot(1, columns, i + 1), title=name, x="round", y=name), history, name)
    axes = plain_axes(drawn.add_subplot(1, columns, columns), title="bytes sent", x="round", y="MB, all rounds so far")
    _bytes(axes, history)
    drawn.suptitle(title, fontsize=12)
    return saved(drawn, path)


def metric_names(history: History) -> list[str]:
    """What was measured, without the side on which it was: loss first, four at most."""
    found: dict[str, None] = {}
    for row in history:
        for column in row:
            if column in NOT_METRICS or column.rpartition("_")[2] in ("worst10", "p10", "p50", "p90"):
                continue
            found[column.removeprefix("clients_").removeprefix("train_")] = None
    return sorted(found, key=lambda name: name != "loss")[:4]


def _metric(axes: Any, history: History, name: str) -> None:
    for prefix, label, colour in SIDES:
        rounds, values = history.column(prefix + name)
        if rounds:
            axes.plot(rounds, values, color=colour, label=label, marker="." if len(rounds) < 3 else None)
        low, high = (history.column(f"{prefix}{name}_{p}") for p in ("p10", "p90"))
        if low[0]:
            axes.fill_between(low[0], low[1], high[1], color=colour, alpha=0.15, label="middle 80 % of clients")
    axes.legend(fontsize=8)


def _bytes(axes: Any, history: History) -> None:
    for column, label, colour in (("bytes_up", "up", BLUE), ("bytes_down", "down", GREY)):
        rounds, values = history.column(column)
        total, sums = 0.0, []
        for value in values:
            total += value / 1e6
            sums.append(total)
        axes.plot(rounds, sums, color=colour, label=label)
    axes.legend(fontsize=8)
