"""The page about data: its examples run, and its picture is of what they make."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "federated-data.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_run(block, tmp_path, monkeypatch):
    if ".png" in block:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, PAGE.name, "exec"), {})
    assert len(list(tmp_path.iterdir())) == block.count(".png") + block.count("np.save(")
