"""Text on the terminal: aligned columns, numbers, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any


def table(rows: Sequence[Sequence[Any]], right: int = 0) -> str:
    """Rows as aligned lines, the first of them the header; columns from the place ``right`` on end at the right."""
    texts = [[cell if isinstance(cell, str) else figure(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    lines = [
        "  ".join(text.rjust(width) if i >= right else text.ljust(width) for i, (text, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in texts)
    ]
    return "\n".join(line.rstrip() for line in lines)


def figure(value: Any) -> str:
    """A number as people read it: whole ones whole, others with four digits after the point or significant."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value) or value == 0:
        return str(value)
    return f"{value:.4f}" if 0.001 <= abs(value) < 100_000 else f"{value:.3e}"


def size(count: float) -> str:
    """Bytes: ``512 B``, ``96.4 kB``, ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def moment(text: str) -> str:
    """A UTC time of the store as local time to the second."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def part(config: Any) -> str:
    """A part's config in one line: ``fedavg(lr=0.1, optimizer="sgd")``; what is None or empty is left out."""
    if isinstance(config, dict):
        said = {k: v for k, v in config.items() if v is not None and v != [] and k not in ("name", "structure")}
        inner = ", ".join(f"{key}={part(value)}" for key, value in said.items())
        if "name" not in config:
            return f"{{{inner}}}"
        return f"{config['name']}({inner})" if inner else str(config["name"])
    if isinstance(config, list):
        return f"[{', '.join(part(one) for one in config)}]"
    return f'"{config}"' if isinstance(config, str) else str(config)
