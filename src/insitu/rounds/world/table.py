"""A CSV file as columns of text, with messages that name the line."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from io import StringIO
from pathlib import Path

import numpy as np

from insitu.core.errors import PlanError


@dataclass(frozen=True)
class Table:
    """The columns of a file [rows], and the SHA-256 of its bytes."""

    path: str
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    digest: str

    @classmethod
    def read(cls, path: str | Path, wanted: Sequence[str]) -> Table:
        """The wanted columns. Raises PlanError where the file or one of them is missing, or there are no rows."""
        try:
            raw = Path(path).expanduser().read_bytes()
            reader = csv.reader(StringIO(raw.decode("utf-8-sig"), newline=""))
            head = [name.strip() for name in next(reader, [])]
            found = [(reader.line_num, row) for row in reader if row]
        except OSError as error:
            raise PlanError(f"{path} cannot be read: {error.strerror or error}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise PlanError(f"{path} is not a CSV file in UTF-8: {error}") from error
        for name in wanted:
            if name not in head:
                near = get_close_matches(name, head, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, head)) or 'none'}"
                raise PlanError(f"{path} has no column {name!r}: {hint}")
        if not found:
            raise PlanError(f"{path} has no rows below its first line")
        for line, row in found:
            if len(row) != len(head):
                raise PlanError(f"{path}, line {line} has {len(row)} values, and the first line {len(head)} names")
        columns = {name: [row[head.index(name)].strip() for _, row in found] for name in wanted}
        return cls(str(path), columns, [line for line, _ in found], sha256(raw).hexdigest())

    def numbers(self, name: str) -> np.ndarray:
        """A column as finite numbers [rows]. Raises PlanError, with the line, for what is none."""
        try:
            found = np.array(self.columns[name], dtype=np.float64)
        except ValueError:
            found = np.array([_number(text) for text in self.columns[name]])
        if (wrong := np.flatnonzero(~np.isfinite(found))).size:
            row = int(wrong[0])
            raise PlanError(f"{self.where(row)}: {name} is {self.columns[name][row]!r}: expected a number")
        return found

    def where(self, row: int) -> str:
        """``phones.csv, line 7``."""
        return f"{self.path}, line {self.lines[row]}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
