"""A disk in memory that tears when it crashes: what was not synced is there in part, as zeros or noise, or not."""

from __future__ import annotations

import errno
import random
from pathlib import Path


class Inode:
    def __init__(self) -> None:
        self.now = bytearray()
        self.synced = b""
        self.at = 0.0


class TornDisk:
    """``insitu.store.blobs.files.Files``. ``room`` is how many bytes fit; ``clock`` is moved by hand, in seconds.

    Names are journalled: a crash keeps a prefix of what was done to them, no shorter than what was synced.
    """

    def __init__(self, seed: int, room: int = 10**9) -> None:
        self._random = random.Random(seed)
        self.room = room
        self.clock = 0.0
        self.syncs = 0
        self._names: dict[Path, Inode] = {}
        self._folders: set[Path] = set()
        self._durable: dict[Path, Inode] = {}
        self._log: list[tuple[Path, Path | None, Inode | None]] = []

    def crash(self) -> None:
        """The power is cut, and comes back."""
        for old, new, inode in self._log[: self._random.randint(0, len(self._log))]:
            self._apply(self._durable, old, new, inode)
        self._log = []
        self._names = dict(self._durable)
        for inode in self._names.values():
            kept = bytes(inode.now) if inode.now.startswith(inode.synced) else inode.synced
            tail = kept[len(inode.synced) :]
            tail = tail[: self._random.randint(0, len(tail))]
            torn = self._random.choice([tail, bytes(len(tail)), self._random.randbytes(len(tail))])
            inode.synced = inode.synced + torn
            inode.now = bytearray(inode.synced)

    # ------------------------------------------------------------ Files

    def open(self, path: Path, *, new: bool) -> Inode:
        if path.parent not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
        inode = self._names.get(path)
        if inode is None:
            if not new:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            inode = Inode()
            self._do(path, None, inode)
        if new:
            inode.now = bytearray()
        inode.at = self.clock
        return inode

    def write(self, handle: Inode, data: memoryview) -> None:
        left = self.room - sum(len(inode.now) for inode in {id(i): i for i in self._names.values()}.values())
        handle.now += data[: max(0, left)]
        handle.at = self.clock
        if len(data) > left:
            raise OSError(errno.ENOSPC, "No space left on device")

    def truncate(self, handle: Inode, length: int) -> None:
        del handle.now[length:]

    def fsync(self, handle: Inode) -> None:
        handle.synced = bytes(handle.now)
        self.syncs += 1

    def close(self, handle: Inode) -> None:
        assert isinstance(handle, Inode)

    def read(self, path: Path, offset: int, length: int | None) -> bytes:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return bytes(self._names[path].now[offset : None if length is None else offset + length])

    def fill(self, path: Path, offset: int, room: memoryview) -> int:
        data = self.read(path, offset, len(room))
        room[: len(data)] = data
        return len(data)

    def size(self, path: Path) -> int | None:
        if path in self._folders:
            return 4096
        return len(self._names[path].now) if path in self._names else None

    def age(self, path: Path) -> float | None:
        return self.clock - self._names[path].at if path in self._names else None

    def touch(self, path: Path) -> None:
        self._names[path].at = self.clock

    def rename(self, old: Path, new: Path) -> None:
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(old))
        self._do(old, new, self._names[old])

    def remove(self, path: Path) -> None:
        if path in self._names:
            self._do(path, None, None)

    def list(self, folder: Path) -> list[str]:
        everything = {*self._names, *self._folders}
        return sorted(path.name for path in everything if path.parent == folder)

    def mkdir(self, folder: Path) -> None:
        self._folders |= {folder, *folder.parents}

    def sync_folder(self, folder: Path) -> None:
        assert folder in self._folders
        for change in self._log:
            self._apply(self._durable, *change)
        self._log = []
        self.syncs += 1

    def _do(self, old: Path, new: Path | None, inode: Inode | None) -> None:
        self._log.append((old, new, inode))
        self._apply(self._names, old, new, inode)

    @staticmethod
    def _apply(names: dict[Path, Inode], old: Path, new: Path | None, inode: Inode | None) -> None:
        names.pop(old, None)
        if inode is not None:
            names[new or old] = inode
