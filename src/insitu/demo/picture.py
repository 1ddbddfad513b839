"""The demonstration's picture: who has what, how each fares alone, and how all do together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from insitu.demo.study import Digits
from insitu.report.figures import BLUE, GREEN, GREY, ORANGE, TEN, figure, plain_axes, saved


def draw(found: Digits, path: Path) -> Path:
    """Writes the PNG and returns its path."""
    drawn = figure(14, 4.3)
    _who_has_what(drawn.add_subplot(1, 3, 1), found)
    _alone(drawn.add_subplot(1, 3, 2), found)
    _rounds(drawn.add_subplot(1, 3, 3), found)
    saved(drawn, path)
    return path


def _who_has_what(axes: Any, found: Digits) -> None:
    """Labels by client, the largest first."""
    plain_axes(axes, title="who has what: 100 clients, few digits each", x="client, by size", y="examples")
    order = sorted(range(len(found.parts)), key=lambda i: -len(found.parts[i]))
    counts = np.array([np.bincount(found.labels[found.parts[i]], minlength=10) for i in order])
    bottom = np.zeros(len(order))
    for digit, colour in enumerate(TEN):
        axes.bar(range(len(order)), counts[:, digit], bottom=bottom, width=1.0, color=colour, label=str(digit))
        bottom += counts[:, digit]
    axes.legend(ncols=5, fontsize=8, title="digit", title_fontsize=8, frameon=False)


def _alone(axes: Any, found: Digits) -> None:
    """Each client's own model, against the one of all."""
    plain_axes(axes, title="alone, nobody can read all digits", x="accuracy on the common test set", y="clients")
    axes.hist(found.alone, bins=np.linspace(0, 1, 26), color=ORANGE, alpha=0.85, label="each client alone")
    axes.axvline(found.alone.mean(), color="black", linestyle=":", label=f"their mean, {found.alone.mean():.2f}")
    axes.axvline(found.federated, color=BLUE, linewidth=2, label=f"together, {found.federated:.3f}")
    axes.legend(fontsize=8, loc="center right")
    axes.set_xlim(0, 1)


def _rounds(axes: Any, found: Digits) -> None:
    """The federated model's way to what pooling all data would give."""
    plain_axes(axes, title="together, without moving an example", x="round", y="accuracy on the test set")
    rounds, accuracy = found.history.column("accuracy")
    axes.plot(rounds, accuracy, color=BLUE, linewidth=2, label="federated")
    axes.axhline(found.central, color=GREEN, linestyle="--", label=f"all data in one place, {found.central:.3f}")
    axes.axhline(found.alone.mean(), color=GREY, linestyle=":", label="mean of clients alone")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8, loc="lower right")
