"""The summary of a partition in numbers, as text and as a picture."""

import builtins

import numpy as np
import pytest

from insitu.core.errors import DataError, MissingExtra
from insitu.data.partition import describe, dirichlet, quantity_skew
from insitu.data.picture import partition_picture

PARTS = [[0, 1, 2], [3], [4, 5]]
LABELS = ["a", "a", "b", "b", "a", "a"]


def test_numbers():
    summary = describe(PARTS, LABELS)
    assert summary.classes.tolist() == ["a", "b"]
    assert summary.table.tolist() == [[2, 1], [0, 1], [2, 0]]
    assert (summary.smallest, summary.median, summary.largest, summary.one_class) == (1, 2.0, 3, 2)
    # Pooled: 2/3 and 1/3. Clients are 0, 2/3 and 1/3 away from it.
    assert summary.distance == pytest.approx(1 / 3)


def test_text():
    assert str(describe(PARTS, LABELS, ["cleveland", "va", "x"])).splitlines() == [
        "3 clients, 6 examples, 2 classes",
        "examples a client      min 1   median 2   max 3",
        "clients with one class 2",
        "distance of labels     0.33   (0: all alike, 1: nothing in common)",
        "",
        "client     examples  a  b",
        "cleveland         3  2  1",
        "va                1  ·  1",
        "x                 2  2  ·",
    ]


def test_long_tables_are_cut_in_the_middle():
    labels = np.arange(4000) % 40
    lines = str(describe(dirichlet(labels, 500), labels)).splitlines()
    assert len(lines) < 20
    assert max(map(len, lines)) < 110
    assert "…" in lines[5]
    assert "…" in lines[12]


@pytest.mark.parametrize("labels", [None, [0.5, 1.5, 2.5, 0.1, 0.2, 0.3]])
def test_without_classes(labels):
    summary = describe(PARTS, labels)
    assert summary.table is summary.distance is summary.one_class is None
    assert str(summary).splitlines()[-1].split() == ["2", "2"]


def test_wrong_labels():
    with pytest.raises(DataError, match="parts hold example 5"):
        describe(PARTS, [0, 1, 0])
    with pytest.raises(DataError, match="parts hold example -1"):
        describe([[-1]], [0, 1, 0])
    with pytest.raises(DataError, match="parts is empty"):
        describe([])


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (10, 10), (100, 10), (24, 15), (30, 62), (300, 2)])
def test_picture(tmp_path, clients, classes):
    pytest.importorskip("matplotlib")
    labels = np.random.default_rng(0).integers(0, classes, 3000)
    path = partition_picture(dirichlet(labels, clients), labels, tmp_path / "clients.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_picture_shows_every_example():
    pytest.importorskip("matplotlib")
    parts = quantity_skew(100, 5)
    figure = partition_picture(parts)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == sorted(map(len, parts), reverse=True)


def test_picture_needs_an_extra(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"insitu\[plots\]"):
        partition_picture(PARTS)
