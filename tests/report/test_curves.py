"""A history as a picture: whatever it has, without touching the user's matplotlib."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from insitu.core.errors import MissingExtra
from insitu.history import History
from insitu.report.curves import metric_names, plot_history

pytest.importorskip("matplotlib")

ROW = {"clients": 3, "failed": 0, "seconds": 0.1, "bytes_up": 1000, "bytes_down": 1200}
SPREAD = {"clients_loss_worst10": 2.0, "clients_loss_p10": 0.4, "clients_loss_p50": 0.5, "clients_loss_p90": 1.5}
HISTORIES = {
    "nothing yet": [],
    "one round": [{"round": 1, **ROW, "train_loss": 1.0}],
    "no metrics": [{"round": i, **ROW} for i in range(1, 5)],
    "all sides": [{"round": i, **ROW, "loss": 1 / i, "clients_loss": 1.0, **SPREAD, "train_loss": 0.5} for i in (1, 2)],
    "measures": [{"round": i, **ROW, "disagreement": 0.5**i, "clock": float(i), "staleness": 1.5} for i in range(1, 9)],
    "seldom evaluated": [{"round": i, **ROW, **({"accuracy": 0.5} if i % 3 == 0 else {})} for i in range(1, 9)],
    "more than fits": [{"round": 1, **ROW, **{f"metric{i}": float(i) for i in range(9)}}],
    "not a number": [{"round": 1, **ROW, "loss": float("nan")}, {"round": 2, **ROW, "loss": None, "note": "text"}],
}


@pytest.mark.parametrize("rows", HISTORIES.values(), ids=HISTORIES.keys())
def test_any_columns_can_be_drawn(rows, tmp_path: Path) -> None:
    history, path = History(rows), tmp_path / "new folder" / "rounds.png"
    drawn = plot_history(history, path, title="a run")
    assert len(drawn.axes) == len(metric_names(history)) + 1
    assert path.read_bytes().startswith(b"\x89PNG")


def test_curves_are_the_history_s_columns() -> None:
    drawn = plot_history(History(HISTORIES["all sides"]))
    loss, sent = drawn.axes
    curves = {line.get_label(): list(line.get_ydata()) for line in loss.lines}
    assert curves == {"test set": [1.0, 0.5], "clients' own": [1.0, 1.0], "training": [0.5, 0.5]}
    assert loss.collections, "the spread over clients is missing"
    assert [list(line.get_ydata()) for line in sent.lines] == [[1.0, 2.0], [1.2, 2.4]]
    assert sent.get_ylabel().startswith("kB")


def test_a_single_measure_needs_no_legend_and_loss_comes_first() -> None:
    drawn = plot_history(History(HISTORIES["measures"]))
    assert drawn.axes[0].get_legend() is None
    both = [{"round": 1, **ROW, "accuracy": 0.5, "loss": 1.0, "train_accuracy": 0.4}]
    assert metric_names(History(both)) == ["loss", "accuracy"]


def test_the_user_s_backend_and_figures_are_left_alone(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from insitu.history import History\n"
        "from insitu.report.curves import plot_history\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot_history(History([{'round': 1, 'loss': 1.0, 'bytes_up': 1, 'bytes_down': 1}]), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "rounds.svg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rounds.svg").exists()


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"pip install 'insitu\[plots\]'"):
        plot_history(History([]))
