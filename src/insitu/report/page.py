"""A page that stands by itself: no script, no font and no picture comes from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --line: #d7dbe2; --soft: #6a717d; }
@media (prefers-color-scheme: dark) { :root { --line: #3a404a; --soft: #a4abb6; } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 3rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.lead { color: var(--soft); margin-top: 0 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
th, td { text-align: left; padding: .45rem .8rem; border-bottom: 1px solid var(--line) }
td:not(:first-child), th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums }
img { width: 100%; border-radius: 6px; background: white }
pre { padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 6px; overflow-x: auto }
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; every cell is text and is escaped."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def section(title: str, *parts: str) -> str:
    """A heading and what is below it (HTML)."""
    return f"<h2>{escape(title)}</h2>" + "".join(parts)


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{escape(words)}</p>"


def code(lines: Sequence[str]) -> str:
    """Lines to be typed."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def picture(path: Path, alt: str) -> str:
    """A PNG, inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def write(path: Path, title: str, lead: str, *sections: str) -> Path:
    """Writes the page; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{"".join(sections)}</body></html>',
        encoding="utf-8",
    )
    return path
