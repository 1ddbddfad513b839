"""The benchmark's result as a table for the terminal or as Markdown, and what has become slower since another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from insitu.bench import machine
from insitu.core.errors import DataError

SLOWER = 1.2
"""A ratio that has grown by more than this factor is worth a line: two shared cores wander by nearly as much."""

HEADER = (
    "model", "who", "wall", "quartiles", "CPU", "s a round", "CPU s", "start s", "peak MB", "CPU ms a step",
    "floor ms", "x floor", "loss",
)  # fmt: skip


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The header, and a row for each model and entrant."""
    found: list[tuple[str, ...]] = [HEADER]
    for model, measured in result["models"].items():
        bottom = measured["floor"]["ms"]
        for who, figures in measured["entrants"].items():
            least, most = figures["wall_ratio_quartiles"]
            loss = figures["loss"]
            found.append((
                model, who, f"{figures['wall_ratio']:.2f}", f"{least:.2f}-{most:.2f}", f"{figures['cpu_ratio']:.2f}",
                _short(figures["seconds"]), _short(figures["cpu_seconds"]), f"{figures['start_seconds']:.1f}",
                f"{figures['peak_pss_bytes'] / 1e6:.0f}", f"{figures['cpu_ms_per_step']:.3f}", f"{bottom:.3f}",
                f"{figures['cpu_ms_per_step'] / bottom:.1f}", "" if loss is None else f"{loss:.3f}",
            ))  # fmt: skip
    return found


def text(result: Mapping[str, Any]) -> str:
    """Aligned columns, and below them the floors and what insitu chose."""
    found = rows(result)
    widths = [max(len(row[i]) for row in found) for i in range(len(HEADER))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in found]
    return "\n".join([*lines, "", *notes(result)])


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The same as a Markdown table, after a line with the date, the machine and the command."""
    head, *body = rows(result)
    about = f"{result['date']}; {machine.sentence(result['machine'])}; `{command}`"
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    lines += [f"| {' | '.join(row)} |" for row in body]
    return "\n".join([about, "", *lines, "", *(f"- {note}" for note in notes(result))])


def notes(result: Mapping[str, Any]) -> list[str]:
    """By model: its data, what its floor is made of, and what insitu chose."""
    found = []
    for model, measured in result["models"].items():
        bottom, chosen = measured["floor"], measured["entrants"]["insitu"]["about"]
        choices = ", ".join(f"{key} {value}" for key, value in chosen.items() if key != "notices")
        found.append(
            f"{model}: {measured['clients']} clients, {measured['cohort']} a round, {measured['source']},"
            f" {measured['steps']:.0f} steps a round, {measured['rounds']} paired rounds;"
            f" a step is {bottom['operations'] / 1e6:.3g} million operations at {bottom['gflops']:.0f} GFLOP/s and"
            f" {bottom['memory_ms']:.2g} ms of memory; insitu chose {choices}"
        )
        found += [f"{model}: insitu said: {notice}" for notice in chosen.get("notices", [])]
    return found + [f"{model} is left out: {why}" for model, why in result["left_out"].items()]


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """A line for each ratio of insitu's that has grown by more than 20 %. Ratios, since seconds are the machine's."""
    lines = []
    for model, measured in now["models"].items():
        other = before["models"].get(model)
        if other is None or "insitu" not in other["entrants"]:
            continue
        for key, name in (("wall_ratio", "wall"), ("cpu_ratio", "CPU")):
            is_, was = measured["entrants"]["insitu"][key], other["entrants"]["insitu"][key]
            if is_ > SLOWER * was:
                lines.append(
                    f"slower: {model}: {name} ratio {is_:.2f}, was {was:.2f} on {before['date']} ({is_ / was:.2f}x)"
                )
    return lines


def read(path: Path) -> dict[str, Any]:
    """A result written before. Raises DataError where the file is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a result of `insitu bench simulate`: {error}") from error
    if not isinstance(result, dict) or result.get("what") != "simulate":
        raise DataError(f"{path} is not a result of `insitu bench simulate`: give another file, or remove it")
    return result


def _short(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"
