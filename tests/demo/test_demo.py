"""The demonstration: what it claims is what it computes, and it opens a browser only where somebody looks."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import numpy as np
import pytest

from insitu.core.errors import PlanError
from insitu.demo import main, parts, show, study

SETTINGS = ("INSITU_NO_BROWSER", "CI", "DISPLAY", "WAYLAND_DISPLAY")


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torch is not installed: the NumPy learner is quick."""
    monkeypatch.setattr(show, "network", lambda: None)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was opened with."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setattr(webbrowser, "get", lambda: None)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return addresses


@pytest.mark.usefixtures("no_torch")
def test_it_says_writes_and_opens(tmp_path: Path, opened: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("COLUMNS", "100")
    main(rounds=2, out=tmp_path / "out")
    said = capsys.readouterr().out
    assert "torch is not installed" in said
    assert "round   2" in said
    assert "30 of 30" in said
    for command in ("new my-study", "run my-study/insitu.toml", "show --store my-study/runs/insitu.db"):
        assert f"insitu {command}" in said
    page = tmp_path / "out" / "demo.html"
    assert opened == [page.resolve().as_uri()]
    assert said.count("together") <= page.read_text(encoding="utf-8").count("together")
    if study.network() is not None:
        pytest.importorskip("matplotlib")
        assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("name", ["INSITU_NO_BROWSER", "CI"])
def test_no_browser_where_nobody_looks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert not show.may_open(), "no display"
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert show.may_open()
    monkeypatch.setenv(name, "1")
    assert not show.may_open()


def test_rounds_are_checked_before_anything_is_trained() -> None:
    with pytest.raises(PlanError, match="rounds=0"):
        main(rounds=0)


def test_dealt_steps_are_those_of_one_machine() -> None:
    found = study.data_parallel(None, steps=5)
    assert found.machine[-1] < found.machine[0]
    np.testing.assert_allclose(found.shared, found.machine, rtol=1e-12)
    assert found.difference < 1e-12
    assert parts.distributed(found).rows[-1][0] == "step 5"


def test_neighbours_are_those_of_one_machine() -> None:
    found = study.iris()
    assert found.rows == found.distributed == found.federated == 30
    assert found.accuracy == found.accuracy_distributed == found.accuracy_federated > 0.9


@pytest.mark.parametrize(("count", "said"), [(0, "0 B"), (19_240, "19.2 kB"), (69.3e6, "69.3 MB"), (2e9, "2.0 GB")])
def test_sizes(count: float, said: str) -> None:
    assert parts.size(count) == said


@pytest.mark.long
def test_together_is_nearly_as_good_as_all_data_in_one_place_and_far_better_than_alone() -> None:
    pytest.importorskip("torch")
    found = study.study(study.network(), 60, lambda event: None)
    assert found.federated >= 0.95
    assert abs(found.federated - found.central) <= 0.02
    assert found.alone.max() < 0.75
    assert sum(map(len, found.parts)) == len(found.labels)
    # What travelled is what 4810 float32 parameters weigh, up and down, and the learning rate with each message.
    assert found.update == found.parameters * 4
    assert 2 * found.update <= found.travelled / (60 * 30) <= 2 * found.update + 64
