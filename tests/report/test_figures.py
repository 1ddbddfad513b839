"""Bars, one part on the other."""

from __future__ import annotations

import numpy as np
import pytest

from insitu.report.figures import DARK, figure, legend, plain_axes, stacked

pytest.importorskip("matplotlib")


def test_stacked_parts_lie_on_each_other_and_empty_ones_are_not_drawn() -> None:
    axes = plain_axes(figure(3, 3, DARK).add_subplot(), title="t", x="x", y="y", theme=DARK)
    stacked(axes, np.array([[2, 0, 1], [0, 3, 0]]), ["a", "b", "c"], width=1.0)
    spans = [
        [tuple(path.get_extents().intervaly) for path in collection.get_paths()] for collection in axes.collections
    ]
    assert spans == [[(0, 2)], [(0, 3)], [(2, 3)]]
    assert axes.collections[1].get_paths()[0].get_extents().intervalx.tolist() == [0.5, 1.5]
    assert axes.get_ylim()[1] > 3
    legend(axes, DARK)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "c"]
