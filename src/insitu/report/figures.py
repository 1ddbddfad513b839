"""Figures without pyplot: nothing here touches the caller's backend or open figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from insitu.core.errors import MissingExtra

BLUE, ORANGE, GREEN, GREY = "#2f6db5", "#d9822b", "#3a9d6e", "#8a8f98"
TEN = tuple(f"C{i}" for i in range(10))
"""Ten colours that can be told apart: matplotlib's own cycle."""


def figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots", "drawing a picture") from error
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: Any, *, title: str, x: str, y: str) -> Any:
    """Axes with a title, names and a light grid."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def saved(drawn: Any, path: str | Path | None) -> Any:
    """The figure, written to ``path`` where one is given; folders are made."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=130, facecolor="white")
    return drawn
