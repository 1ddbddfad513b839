"""A site's own folder, as its parts see it: small files that are whole and durable once they are written."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """Files by the names of their folders and their own. Raises OSError where the disk does."""

    def read(self, *names: str) -> bytes:
        """Raises FileNotFoundError where it is not there."""
        ...

    def write(self, data: bytes, *names: str, durable: bool = True) -> None:
        """The file is there, whole and durable, or is as it was before. Not ``durable``: a crash may lose it."""
        ...

    def remove(self, *names: str) -> None:
        """The file, or the folder with all that is in it; nothing where it is not there."""
        ...

    def list(self, *names: str) -> dict[str, int]:
        """What is in a folder, with sizes in bytes (0 for folders); the oldest first."""
        ...


class Folder:
    """The real one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def tidy(self) -> None:
        """Removes what a process that was killed has left half written. Nobody else may be at work here."""
        for aside in self.root.rglob(".*"):
            if aside.is_file():
                aside.unlink()

    def read(self, *names: str) -> bytes:
        return self._path(names).read_bytes()

    def write(self, data: bytes, *names: str, durable: bool = True) -> None:
        path = self._path(names)
        self._make(path.parent)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        if durable:
            _sync(path.parent)

    def _make(self, folder: Path) -> None:
        """A folder that is new is durable once the one that it lies in is."""
        if folder.is_dir():
            return
        if folder != self.root:
            self._make(folder.parent)
        folder.mkdir(parents=folder == self.root, exist_ok=True, mode=0o700)
        _sync(folder.parent)

    def remove(self, *names: str) -> None:
        path = self._path(names)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def list(self, *names: str) -> dict[str, int]:
        path = self._path(names)
        try:
            found = [(entry.stat().st_mtime_ns, entry) for entry in os.scandir(path) if not entry.name.startswith(".")]
        except FileNotFoundError:
            return {}
        found.sort(key=lambda one: (one[0], one[1].name))
        return {entry.name: 0 if entry.is_dir() else entry.stat().st_size for _, entry in found}

    def _path(self, names: tuple[str, ...]) -> Path:
        for name in names:
            if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{name[:80]!r} is no file's name of ours")
        return self.root.joinpath(*names)


def _sync(folder: Path) -> None:
    """A rename is durable once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
