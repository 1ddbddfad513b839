"""Where in a configuration something is said: for messages, and for paths that are relative to its file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from insitu.config import toml
from insitu.core.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """A table of a configuration.

    file    as messages name it: ``insitu.toml``, ``the command line``
    folder  what relative paths start from
    table   ``algorithm``, ``algorithm.lr``; empty at the top
    """

    file: str
    folder: Path
    table: str = ""

    def __str__(self) -> str:
        return f"{self.file}, [{self.table}]" if self.table else self.file

    def at(self, key: str) -> Place:
        """The table of this name in this one."""
        return replace(self, table=f"{self.table}.{key}" if self.table else key)

    def path(self, text: str) -> Path:
        """A path as the file means it."""
        return self.folder / Path(text).expanduser()

    def error(self, text: str) -> ConfigError:
        """An error that says where."""
        return ConfigError(f"{self}: {text}")

    def wrong(self, key: str, value: Any, text: str) -> ConfigError:
        """An error about the value of a key."""
        return ConfigError(f"{self}{' ' if self.table else ': '}{key} = {toml.value(value)}: {text}")
