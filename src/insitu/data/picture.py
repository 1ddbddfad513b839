"""A partition as a picture: one bar a client, in the colours of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core.errors import MissingExtra
from insitu.data.summary import Summary, describe

_TEN = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#b07aa1",
    "#edc948",
    "#76b7b2",
    "#9c755f",
    "#ff9da7",
    "#a0a6ab",
)
"""Colours of up to ten classes, easy to tell apart side by side (Tableau 10, reordered)."""
_NAMED = 24
"""Up to so many clients are named under their bars, whose classes are parted by white lines."""
_APART = 150
"""Up to so many clients have a gap between their bars; beyond it a gap would be thinner than a pixel."""
_GREY, _INK = "#c8ccd0", "#33383d"


def partition_picture(
    parts: Sequence[Any], labels: Any | None = None, path: Any = None, *, ids: Sequence[str] | None = None
) -> Any:
    """Draws the number of examples of each class by client, largest client first.

    Args:
        parts: for each client its examples' numbers.
        labels: labels [n], or None: sizes only.
        path: where to write the picture (.png, .svg, .pdf); None: not written.
        ids: the clients' names; their places by default.

    Returns:
        The path as a ``pathlib.Path``, or without one the ``matplotlib.figure.Figure``.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    return summary_picture(describe(parts, labels, ids), path)


def summary_picture(summary: Summary, path: Any = None) -> Any:
    """The same picture from a summary (:func:`insitu.data.partition.describe`)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots", "Drawing a partition") from error
    # A Figure of its own, not pyplot's: nothing global is touched, no window is opened.
    figure = Figure(figsize=(9.6, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    order = np.argsort(-summary.sizes, kind="stable")
    _bars(axes, summary, order)
    _dress(axes, summary, order)
    if path is None:
        return figure
    figure.savefig(path)
    return Path(path)


def _bars(axes: Any, summary: Summary, order: np.ndarray) -> None:
    clients = len(order)
    table = summary.sizes[order][:, None] if summary.table is None else summary.table[order]
    tops = np.cumsum(table, axis=1)
    colours = _colours(table.shape[1]) if summary.table is not None else [_TEN[0]]
    for k, colour in enumerate(colours):
        label = None if summary.classes is None else str(summary.classes[k])
        bottom = tops[:, k] - table[:, k]
        if clients <= _APART:
            # White lines only around what is there: the edge of an empty bar would be a stray line.
            held = np.flatnonzero(table[:, k])
            line = 0.6 if clients <= _NAMED else 0
            axes.bar(
                held,
                table[held, k],
                0.82,
                bottom[held],
                color=colour,
                edgecolor="white",
                linewidth=line,
                label=label,
            )
        else:
            edges = np.arange(clients + 1) - 0.5
            axes.stairs(tops[:, k], edges, baseline=bottom, fill=True, color=colour, label=label, linewidth=0)


def _dress(axes: Any, summary: Summary, order: np.ndarray) -> None:
    clients = len(order)
    axes.set_xlim(-0.7, clients - 0.3)
    axes.set_ylim(0, summary.largest * 1.05)
    axes.set_ylabel("examples", color=_INK)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e6e8ea", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    axes.tick_params(colors=_INK, length=0)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(_title(summary), loc="left", color=_INK, fontsize=11, pad=12)
    if clients <= _NAMED:
        names = [_short(str(summary.ids[place])) for place in order]
        slanted = max(map(len, names)) * clients > 100
        axes.set_xticks(range(clients), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
        axes.set_xlabel("client", color=_INK)
    else:
        axes.set_xlabel(f"{clients:,} clients, largest first", color=_INK)
        axes.set_xticks([])
    if summary.classes is not None:
        _legend(axes, summary.classes)


def _title(summary: Summary) -> str:
    text = f"{summary.smallest:,} to {summary.largest:,} examples a client, median {summary.median:,.0f}"
    if summary.distance is not None:
        text += f"   ·   distance of labels {summary.distance:.2f}"
    return text


def _legend(axes: Any, classes: np.ndarray) -> None:
    if len(classes) <= 20:
        columns = 1 if len(classes) <= 12 else 2
        handles, labels = axes.get_legend_handles_labels()
        # Top to bottom as the bars are stacked.
        axes.legend(
            handles[::-1],
            [_short(label) for label in labels[::-1]],
            title="class",
            ncols=columns,
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            labelcolor=_INK,
            handlelength=1.0,
            handleheight=1.0,
        )
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    places = np.unique(np.linspace(0, len(classes) - 1, 8).astype(int))
    colours = ScalarMappable(cmap=ListedColormap(_colours(len(classes))))
    colours.set_clim(-0.5, len(classes) - 0.5)
    bar = axes.figure.colorbar(colours, ax=axes, ticks=places, pad=0.02, aspect=30)
    bar.set_ticklabels([_short(str(classes[place])) for place in places])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=_INK)
    bar.set_label("class", color=_INK)


def _colours(classes: int) -> list[Any]:
    if classes <= len(_TEN):
        return list(_TEN[:classes])
    from matplotlib import colormaps

    return list(colormaps["Spectral"](np.linspace(0.02, 0.98, classes)))


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
