"""TOML as text: read, with overrides from a command line, and written again."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from insitu.core.errors import ConfigError

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def read(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises ConfigError where there is none, or, with the line, where it is not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path} cannot be read: {reason}: `insitu new NAME` writes a file to start from") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name}{_explained(text, str(error))}") from error


def _explained(text: str, message: str) -> str:
    """``, line 3: `lr = 0,1`: Expected newline …``: what TOML's reader says, with the line it speaks of."""
    where = _WHERE.search(message)
    what = _WHERE.sub("", message)
    what = what[:1].lower() + what[1:]
    lines = text.splitlines() or [""]
    number = int(where[1]) if where and where[1] else len(lines)
    return f", line {number}: `{lines[min(number, len(lines)) - 1].strip()}`: {what}"


def override(tables: dict[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The tables with changes such as ``algorithm.lr=0.05``. A value that is not TOML is taken as text."""
    for change in changes:
        key, equals, text = change.partition("=")
        names = [name.strip() for name in key.split(".")]
        if not equals or not all(names):
            raise ConfigError(f"--set {change}: give TABLE.KEY=VALUE, such as algorithm.lr=0.05")
        tables = _changed(tables, names, _value_of(change, text.strip()), change)
    return tables


def _changed(old: Any, names: list[str], new: Any, change: str) -> Any:
    if not names:
        return new
    first, rest = names[0], names[1:]
    if isinstance(old, list):
        if not first.isdigit() or int(first) >= len(old):
            raise ConfigError(f"--set {change}: {first!r} is not a place in a list of {len(old)}")
        return [_changed(item, rest, new, change) if i == int(first) else item for i, item in enumerate(old)]
    if isinstance(old, str):
        old = {"name": old}  # what has no settings may be said by its name alone, and gets some here
    if old is not None and not isinstance(old, dict):
        raise ConfigError(f"--set {change}: there is {value(old)} where {first!r} should be a key: set it as a whole")
    return {**(old or {}), first: _changed((old or {}).get(first), rest, new, change)}


def _value_of(change: str, text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        # A shell eats quotation marks, so that a bare word has to do for a text.
        if text[:1] in ("[", "{", '"', "'") or "\n" in text:
            raise ConfigError(f"--set {change}: {_WHERE.sub('', str(error))}") from error
        return text
    return found["value"] if len(found) == 1 else text


def dumps(tables: Mapping[str, Any]) -> str:
    """The tables as TOML text; what is None is left out."""
    lines: list[str] = []
    for key, item in tables.items():
        if isinstance(item, Mapping):
            lines += ["", f"[{_key(key)}]", *_pairs(item)]
        elif isinstance(item, list) and item and all(isinstance(one, Mapping) for one in item):
            for one in item:
                lines += ["", f"[[{_key(key)}]]", *_pairs(one)]
        elif item is not None:
            lines.insert(0, f"{_key(key)} = {value(item)}")
    return "\n".join(lines).strip() + "\n"


def value(item: Any) -> str:
    """One value as TOML: ``0.1``, ``"sgd"``, ``{ name = "cosine", lr = 0.1 }``."""
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(item, (list, tuple)):
        return f"[{', '.join(value(one) for one in item if one is not None)}]"
    if isinstance(item, Mapping):
        return f"{{ {', '.join(_pairs(item))} }}" if item else "{}"
    return repr(item) if isinstance(item, (int, float)) else str(item)


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {value(item)}" for key, item in table.items() if item is not None]


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else value(key)
