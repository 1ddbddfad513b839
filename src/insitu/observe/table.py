"""Tables and headings on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Screen:
    """A terminal, or whatever stdout is: plain text where it is none."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    def heading(self, words: str) -> None:
        """A line that starts a part."""
        self._console.print(f"\n[bold]{escape(words)}[/bold]")

    def say(self, words: str) -> None:
        """A line."""
        self._console.print(escape(words))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> None:
        """A table whose first column is text and whose others are figures; the row ``strong`` stands out."""
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(head):
            shown.add_column(escape(name), justify="left" if i == 0 else "right")
        for i, row in enumerate(rows):
            shown.add_row(*(escape(cell) for cell in row), style="bold green" if i == strong else None)
        self._console.print(shown)
