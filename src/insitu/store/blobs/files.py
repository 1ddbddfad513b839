"""The few things that a blob folder asks of an operating system: a simulation can be one, and tear its writes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Protocol


class Files(Protocol):
    """All raise OSError. A handle is whatever ``open`` gives."""

    def open(self, path: Path, *, new: bool) -> Any:
        """The file for writing at its end: an empty one (``new``), or one that is there."""
        ...

    def write(self, handle: Any, data: memoryview) -> None:
        """All of ``data`` at the end."""
        ...

    def truncate(self, handle: Any, length: int) -> None: ...
    def fsync(self, handle: Any) -> None: ...
    def close(self, handle: Any) -> None: ...
    def read(self, path: Path, offset: int, length: int | None) -> bytes: ...
    def fill(self, path: Path, offset: int, room: memoryview) -> int:
        """The bytes from ``offset`` on, put into ``room``; how many there were."""
        ...

    def size(self, path: Path) -> int | None:
        """Bytes, or None where there is no such file."""
        ...

    def age(self, path: Path) -> float | None:
        """Seconds since it was written or touched, or None where there is no such file."""
        ...

    def touch(self, path: Path) -> None: ...
    def rename(self, old: Path, new: Path) -> None:
        """Takes the place of what is at ``new``."""
        ...

    def remove(self, path: Path) -> None:
        """Nothing where there is no such file."""
        ...

    def list(self, folder: Path) -> list[str]:
        """Names in order; none where there is no such folder."""
        ...

    def mkdir(self, folder: Path) -> None:
        """With those above it; nothing where it is there."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Makes the names in it durable."""
        ...


class RealFiles:
    """The operating system's own."""

    def open(self, path: Path, *, new: bool) -> int:
        fresh = os.O_CREAT | os.O_TRUNC if new else 0
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | fresh, 0o600)

    def write(self, handle: int, data: memoryview) -> None:
        while data:
            data = data[os.write(handle, data) :]

    def truncate(self, handle: int, length: int) -> None:
        os.ftruncate(handle, length)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def read(self, path: Path, offset: int, length: int | None) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def fill(self, path: Path, offset: int, room: memoryview) -> int:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            done = 0
            while done < len(room):
                count = os.preadv(handle, [room[done:]], offset + done)
                if not count:
                    break
                done += count
            return done
        finally:
            os.close(handle)

    def size(self, path: Path) -> int | None:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def age(self, path: Path) -> float | None:
        try:
            return time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return None

    def touch(self, path: Path) -> None:
        os.utime(path)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()

    def list(self, folder: Path) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def mkdir(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def sync_folder(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
