"""A federation's folder: which file is where, and who may read it.

::

    my-study/
      federation.toml      settings
      authority/           the authority's and the coordinator's keys: whoever has them can enrol anybody
      operator/            the founding operator's: may be moved to another machine, and used from there
      code/                what plans name as file.py:object, and requirements of it
      federation.db        ledger and runs, where the store is SQLite
      blobs/               tensors, where they are kept in a folder
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from insitu.core.errors import ConfigError
from insitu.federation import settings
from insitu.federation.settings import Settings

OPERATOR_FILE = "operator.toml"


@dataclass(frozen=True)
class Folder:
    """The paths in a federation's folder."""

    path: Path

    @property
    def authority(self) -> Path:
        """The authority's folder."""
        return self.path / "authority"

    @property
    def operator(self) -> Path:
        """The founding operator's folder."""
        return self.path / "operator"

    @property
    def code(self) -> Path:
        """What plans' file references are relative to."""
        return self.path / "code"

    @property
    def spool(self) -> Path:
        """Where chunks arrive that are then kept in a bucket."""
        return self.path / "spool"

    def place(self, url: str) -> str:
        """A URL as it is; what is none is a path in this folder."""
        return url if "://" in url else str(self.path / url)

    def settings(self) -> Settings:
        """What ``federation.toml`` says. Raises ConfigError."""
        return settings.load(self.path)

    def is_federation(self) -> bool:
        """Whether there is a federation here."""
        return (self.path / settings.FILE).is_file()


def found(path: Path | None) -> Path:
    """The federation's or operator's folder that a command works with: the one given, or the current directory.

    Raises ConfigError where it is neither.
    """
    chosen = Path.cwd() if path is None else path
    if (chosen / settings.FILE).is_file() or (chosen / OPERATOR_FILE).is_file():
        return chosen
    if not chosen.exists():
        raise ConfigError(f"there is no folder {chosen}: `insitu federation init NAME` makes a federation's")
    what = "the current directory" if path is None else str(chosen)
    raise ConfigError(
        f"{what} is no folder of a federation or an operator, as it has no {settings.FILE} and no {OPERATOR_FILE}:"
        " give --federation FOLDER"
    )
