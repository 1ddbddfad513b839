"""A page stands by itself, and what is text stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from insitu.report import page

EVIL = '<script>alert("x")</script> & "co"'


class Open(HTMLParser):
    """Counts what is opened and not closed."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def written(tmp_path: Path) -> str:
    png = tmp_path / "a.png"
    png.write_bytes(b"\x89PNG")
    path = page.write(
        tmp_path / "folder" / "page.html",
        EVIL,
        EVIL,
        page.figures([("96.9%", EVIL), ("0", "left")], strong=0),
        page.picture(png, EVIL, png),
        page.picture(png, EVIL),
        page.section(EVIL, page.table((EVIL, "b"), [(EVIL, "1"), ("c", "2")], strong=1), page.text(EVIL)),
        page.commands([(EVIL, EVIL)]),
    )
    return path.read_text(encoding="utf-8")


def test_tags_are_closed_and_text_stays_text(tmp_path: Path) -> None:
    html = written(tmp_path)
    parser = Open()
    parser.feed(html)
    assert parser.stack == []
    assert "script" not in parser.seen
    assert html.count('class="strong"') == 2


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    html = written(tmp_path)
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in html
    assert "http" not in html
    assert "@import" not in html


def test_it_can_be_read_in_the_dark(tmp_path: Path) -> None:
    html = written(tmp_path)
    assert "color-scheme: light dark" in html
    assert '<source media="(prefers-color-scheme: dark)"' in html
