"""The first programs that a newcomer copies run as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def programs(page: str) -> list[str]:
    """The Python blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize(("page", "blocks"), [("README.md", 1), ("docs/getting-started.md", 2)])
def test_the_first_program_runs(page: str, blocks: int, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in programs(page)[:blocks]:
        exec(compile(block, page, "exec"), namespace)
    assert (tmp_path / "history.png").is_file()
    assert (tmp_path / "runs" / "insitu.db").is_file()
    assert "accuracy" in capsys.readouterr().err
    last = namespace["result"].history[-1]  # type: ignore[attr-defined]
    assert last["clients_accuracy"] > 0.8
