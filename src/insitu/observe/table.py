"""Tables and headings on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

INDENT, WIDEST = 2, 96
"""Columns to the left of everything but headings; lines longer than this are hard to read."""


class Screen:
    """A terminal, or whatever stdout is: plain text where it is none."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._width = min(self._console.width, WIDEST)

    def heading(self, words: str) -> None:
        """A line that starts a part."""
        self._console.print()
        self._console.print(Text(words, style="bold"), width=self._width)

    def say(self, words: str, style: str = "") -> None:
        """A paragraph, wrapped between words."""
        self._console.print(Padding.indent(Text(words, style=style), INDENT), width=self._width)

    def line(self, words: str, style: str = "") -> None:
        """A line that is not wrapped, so that what is in it can be copied: a path, a command."""
        self._console.print(Text(" " * INDENT + words, style=style), soft_wrap=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> None:
        """A table whose first column is text and whose others are figures; the row ``strong`` stands out."""
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for i, name in enumerate(head):
            shown.add_column(Text(name), justify="left" if i == 0 else "right")
        for i, row in enumerate(rows):
            shown.add_row(*(Text(cell) for cell in row), style="bold green" if i == strong else None)
        self._console.print(Padding.indent(shown, INDENT), width=self._width)
