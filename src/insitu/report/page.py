"""A page that stands by itself: no script, no font and no picture comes from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #23272e; --soft: #626a76; --line: #dfe3e8; --strong: #2f6db5;
  --tint: #f4f6f9 }
@media (prefers-color-scheme: dark) { :root { --paper: #1a1d22; --ink: #dfe3e9; --soft: #a0a8b4; --line: #343a43;
  --strong: #6ea8ef; --tint: #22262d } }
* { box-sizing: border-box }
body { font: 16px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 66rem;
  margin: 3.5rem auto; padding: 0 1.5rem }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 .4rem }
h2 { font-size: 1.2rem; margin: 3rem 0 .6rem }
p { max-width: 46rem }
p.lead { color: var(--soft); margin: 0 0 2rem }
table { border-collapse: collapse; width: 100%; margin: .8rem 0 1rem }
th, td { text-align: left; padding: .5rem .8rem; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500; font-size: .9rem }
td:not(:first-child), th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums }
tr.strong td { color: var(--strong); font-weight: 650 }
img { width: 100%; display: block; margin: 1rem 0 }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin: 0 0 2rem }
.figures div { background: var(--tint); border-radius: 10px; padding: 1rem 1.2rem; color: var(--soft) }
.figures b { display: block; font-size: 1.9rem; line-height: 1.3; color: var(--ink) }
.figures .strong b { color: var(--strong) }
dl { margin: 0 } dt { margin-top: .9rem } dd { margin: .1rem 0 0; color: var(--soft) }
code { font: .95em ui-monospace, monospace; background: var(--tint); border-radius: 5px; padding: .2em .5em }
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> str:
    """An HTML table; every cell is text and is escaped. The row ``strong`` stands out."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{_strong(i == strong)}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for i, row in enumerate(rows)
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def figures(found: Sequence[tuple[str, str]], strong: int | None = None) -> str:
    """Large figures side by side, each with a few words."""
    cards = (
        f"<div{_strong(i == strong)}><b>{escape(figure)}</b>{escape(words)}</div>"
        for i, (figure, words) in enumerate(found)
    )
    return f'<div class="figures">{"".join(cards)}</div>'


def section(title: str, *parts: str) -> str:
    """A heading and what is below it (HTML)."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{escape(words)}</p>"


def commands(lines: Sequence[tuple[str, str]]) -> str:
    """Commands to be typed, each with what it does."""
    told = (f"<dt><code>{escape(command)}</code></dt><dd>{escape(words)}</dd>" for command, words in lines)
    return f"<dl>{''.join(told)}</dl>"


def picture(path: Path, alt: str, dark: Path | None = None) -> str:
    """A PNG, inside the page; ``dark`` takes its place where the reader's screen is dark."""
    own = f'<img alt="{escape(alt, quote=True)}" src="{_data(path)}">'
    if dark is None:
        return own
    return f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">{own}</picture>'


def write(path: Path, title: str, lead: str, *sections: str) -> Path:
    """Writes the page; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{"".join(sections)}</body></html>\n',
        encoding="utf-8",
    )
    return path


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _strong(yes: bool) -> str:
    return ' class="strong"' if yes else ""
