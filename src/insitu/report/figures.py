"""Figures without pyplot: nothing here touches the caller's backend or open figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core.errors import MissingExtra

BLUE, ORANGE, GREEN, GREY = "#2f6db5", "#d9822b", "#3a9d6e", "#8a8f98"
TEN = (
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
"""Ten colours that can be told apart side by side (Tableau 10, reordered): those of the pictures of partitions."""


@dataclass(frozen=True)
class Theme:
    """Colours of what is not data."""

    paper: str
    ink: str
    line: str
    strong: str
    """The colour of what a picture is about."""


LIGHT = Theme("#ffffff", "#33383d", "#e3e6ea", BLUE)
DARK = Theme("#1a1d22", "#c9ced6", "#343a43", "#6ea8ef")


def figure(width: float, height: float, theme: Theme = LIGHT) -> Any:
    """An empty figure, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots", "drawing a picture") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper)


def plain_axes(axes: Any, *, title: str, x: str, y: str, theme: Theme = LIGHT) -> Any:
    """Axes with a title, names, a light grid behind the data and no box."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, fontsize=11.5, loc="left", color=theme.ink, fontweight="bold", pad=10)
    axes.set_xlabel(x, color=theme.ink)
    axes.set_ylabel(y, color=theme.ink)
    axes.set_axisbelow(True)
    axes.grid(color=theme.line, linewidth=0.8)
    axes.tick_params(colors=theme.ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)
    return axes


def stacked(axes: Any, heights: np.ndarray, names: Sequence[str], width: float = 0.82) -> None:
    """Bars at 0 … n-1 for ``heights`` [n, k]: the k parts of a bar one on the other, in the colours of :data:`TEN`."""
    from matplotlib.collections import PolyCollection

    tops = heights.cumsum(axis=1)
    for part, name in enumerate(names):
        held = np.flatnonzero(heights[:, part])
        low, high = (tops - heights)[held, part], tops[held, part]
        left, right = held - width / 2, held + width / 2
        corners = np.stack([np.c_[left, low], np.c_[left, high], np.c_[right, high], np.c_[right, low]], axis=1)
        # One collection a part: a rectangle each, as bar() makes them, takes seconds where there are a thousand.
        axes.add_collection(PolyCollection(corners, facecolors=TEN[part % len(TEN)], linewidth=0, label=name))
    axes.set_xlim(-1, len(heights))
    axes.set_ylim(0, 1.05 * tops[:, -1].max())


def legend(axes: Any, theme: Theme = LIGHT, **options: Any) -> None:
    """A legend without a frame; none where nothing has a name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**{"fontsize": 8.5, "frameon": False, "labelcolor": theme.ink, **options})


def saved(drawn: Any, path: str | Path | None) -> Any:
    """The figure, written to ``path`` where one is given; folders are made."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=130, facecolor=drawn.get_facecolor())
    return drawn
