"""Text on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from insitu.observe.table import Screen


def shown(width: int = 60, terminal: bool = False) -> tuple[Screen, io.StringIO]:
    file = io.StringIO()
    return Screen(Console(file=file, width=width, highlight=False, force_terminal=terminal, color_system=None)), file


def test_figures_are_aligned_and_markup_is_text() -> None:
    screen, file = shown()
    screen.table(("who", "[red]how[/red]"), [("a [b]", "1"), ("c", "10,000")], strong=0)
    lines = [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]
    assert "[red]how[/red]" in lines[0]
    assert "a [b]" in lines[2]
    assert len(lines[2]) == len(lines[3])


def test_paragraphs_wrap_between_words_and_lines_do_not() -> None:
    screen, file = shown(width=30)
    words = "a sentence that is longer than the thirty columns"
    screen.say(words)
    paragraph = file.getvalue().splitlines()
    assert all(line.startswith("  ") and len(line) <= 30 for line in paragraph)
    assert " ".join(" ".join(paragraph).split()) == words
    file.truncate(0)
    file.seek(0)
    screen.line("a/path/" + "x" * 60)
    assert file.getvalue() == "  a/path/" + "x" * 60 + "\n"


def test_a_wide_terminal_does_not_make_long_lines() -> None:
    screen, file = shown(width=300)
    screen.say("word " * 100)
    assert max(map(len, file.getvalue().splitlines())) <= 96
