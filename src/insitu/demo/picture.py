"""The demonstration's picture: who has what, how each fares alone, and how all do together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from insitu.demo.study import Digits
from insitu.report.figures import GREEN, LIGHT, ORANGE, Theme, figure, legend, plain_axes, saved, stacked


def draw(found: Digits, path: Path, theme: Theme = LIGHT) -> Path:
    """Writes the PNG and returns its path."""
    drawn = figure(14, 4.4, theme)
    drawn.get_layout_engine().set(wspace=0.06)
    _who_has_what(drawn.add_subplot(1, 3, 1), found, theme)
    _alone(drawn.add_subplot(1, 3, 2), found, theme)
    _rounds(drawn.add_subplot(1, 3, 3), found, theme)
    saved(drawn, path)
    return path


def _who_has_what(axes: Any, found: Digits, theme: Theme) -> None:
    """Labels by client, the largest first."""
    title = f"{len(found.parts)} clients, a few digits each"
    plain_axes(axes, title=title, x="clients, the largest first", y="examples", theme=theme)
    order = sorted(range(len(found.parts)), key=lambda i: -len(found.parts[i]))
    counts = np.array([np.bincount(found.labels[found.parts[i]], minlength=10) for i in order])
    stacked(axes, counts, [str(digit) for digit in range(10)])
    axes.grid(visible=False, axis="x")
    axes.set_xticks([])
    legend(axes, theme, ncols=5, title="digit", handlelength=0.9, handleheight=0.9, columnspacing=1.1)
    axes.get_legend().get_title().set(color=theme.ink, fontsize=8.5)


def _alone(axes: Any, found: Digits, theme: Theme) -> None:
    """Each client's own model by how much it had to learn from, against the one of all."""
    title = "alone, nobody reads all ten"
    plain_axes(axes, title=title, x="examples that a client has", y="accuracy on the test set", theme=theme)
    sizes = np.array([len(part) for part in found.parts])
    axes.scatter(sizes, found.alone, s=26, color=ORANGE, alpha=0.75, linewidth=0)
    _levels(axes, found, theme, right=sizes.max() * 1.04)
    axes.text(sizes.max() * 1.02, found.alone.max() + 0.04, "each client alone", color=ORANGE, ha="right")
    axes.axhline(found.federated, color=theme.strong, linewidth=2.2)
    axes.set_xlim(0, sizes.max() * 1.04)


def _rounds(axes: Any, found: Digits, theme: Theme) -> None:
    """The federated model's way to what pooling all data would give."""
    title = "together, no example moves"
    plain_axes(axes, title=title, x="rounds", y="accuracy on the test set", theme=theme)
    rounds, accuracy = found.history.column("accuracy")
    axes.plot(rounds, accuracy, color=theme.strong, linewidth=2.2)
    mean = found.alone.mean()
    axes.axhline(mean, color=ORANGE, linewidth=1.6, linestyle=":")
    axes.text(rounds[-1], mean - 0.055, f"alone, the mean client {mean:.3f}", color=ORANGE, ha="right")
    _levels(axes, found, theme, right=rounds[-1])
    axes.set_xlim(0, rounds[-1] * 1.01)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _levels(axes: Any, found: Digits, theme: Theme, right: float) -> None:
    """Where all data in one place would be, named above its line, and where all are together, named below."""
    axes.axhline(found.central, color=GREEN, linewidth=1.6, linestyle="--")
    above, below = max(found.central, found.federated) + 0.02, min(found.central, found.federated) - 0.065
    axes.text(right, above, f"all data in one place {found.central:.3f}", color=GREEN, ha="right")
    axes.text(right, below, f"together {found.federated:.3f}", color=theme.strong, ha="right", fontweight="bold")
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6))
