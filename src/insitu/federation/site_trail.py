"""A site's audit log: a file of JSON lines, each chained to the one before it by its hash."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from insitu.core import audit
from insitu.engines.https.authority import files

_BACK = 65536


class SiteTrail:
    """What was asked of a site, and what left it. One process writes, others may read meanwhile.

    who  asks: the coordinator's addresses
    """

    def __init__(self, path: Path, who: str = "", now: Callable[[], float] = time.time) -> None:
        self._path, self._who, self._now = path, who, now
        self._seq, self._before = 0, audit.GENESIS
        for entry in self.entries():
            self._seq, self._before = entry["seq"], entry["hash"]

    def note(self, what: str, data: Mapping[str, Any]) -> None:
        """Appends an entry, durable on return. Raises OSError, and then it is not there: nothing may leave unseen."""
        told = {"at": self._now(), "who": self._who, "what": what, "data": data}
        entry = audit.chained(told, self._seq + 1, self._before)
        new = not self._path.exists()
        handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with open(handle, "r+b", buffering=0) as file:
            end = _mended(file)
            try:
                line = memoryview(json.dumps(entry).encode() + b"\n")
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    file.truncate(end)
                raise
        if new:
            files.sync_folder(self._path.parent)
        self._seq, self._before = self._seq + 1, entry["hash"]

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, the oldest first; what is none is passed over, and missed by ``verify`` if it was one."""
        if not self._path.is_file():
            return
        with open(self._path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and type(entry.get("seq")) is int and isinstance(entry.get("hash"), str):
                    yield {"before": "", **entry}

    def verify(self) -> audit.Broken | None:
        """The first entry that was changed or has lost those before it; None where all is whole."""
        entries = self.entries()
        first = next(entries, None)
        if first is None:
            return None
        if first["seq"] != 1:
            return audit.Broken(first["seq"], f"it begins with entry {first['seq']}: those before it are missing")
        return audit.verify(chain([first], entries))


def _mended(file: Any) -> int:
    """Where the last whole line ends: what a crash or a full disk has left of another one is cut off."""
    end = size = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - _BACK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end != size:
        file.truncate(end)
    return int(end)
