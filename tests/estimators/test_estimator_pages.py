"""The pages about estimators, clustering and neighbours: their examples run and print what the pages say."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from insitu.core.errors import DataError
from insitu.data import load

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("estimators.md", "algorithms/clustering.md", "algorithms/neighbours.md", "trees.md")
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_examples_print_what_the_page_says(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    if "XGB" in text:
        pytest.importorskip("xgboost")
    if 'load("heart")' in text:
        try:
            load("heart")
        except DataError as error:
            pytest.skip(str(error).splitlines()[0])
    names: dict[str, object] = {}
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```python")
    for code, expected in blocks:
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        assert printed.getvalue() == expected
