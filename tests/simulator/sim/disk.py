"""A disk that forgets what was not synced, tears it, and may be full: for the coordinator's blobs, a site's folder."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from sim.loop import Process


@dataclass
class Inode:
    """A file, or a folder (``data`` is None). ``synced`` is what of it would be there after a crash."""

    data: bytearray | None
    synced: bytes = b""
    touched: float = 0.0


@dataclass(frozen=True)
class Change:
    """A name that was made, moved or removed, and is not yet durable; as one step in a journal."""

    gone: Path | None
    made: Path | None
    inode: Inode | None

    def touches(self, folder: Path) -> bool:
        """Whether a sync of this folder makes it durable."""
        return any(path is not None and path.parent == folder for path in (self.gone, self.made))


@dataclass
class Platter:
    """What outlives a process. Names are durable once their folder is synced, bytes once the file is.

    At a crash a beginning of the other changes of names is kept, and of bytes that were not synced some are there,
    some are zeros and some are noise. ``room`` is how many bytes fit.
    """

    random: Random
    now: Callable[[], float]
    room: int = 10**9
    names: dict[Path, Inode] = field(default_factory=lambda: {Path("/"): Inode(None)})
    durable: dict[Path, Inode] = field(default_factory=lambda: {Path("/"): Inode(None)})
    journal: list[Change] = field(default_factory=list)
    inside: dict[Path, set[str]] = field(default_factory=dict)
    """Names by folder, as they are now."""

    def crash(self) -> None:
        """The machine goes off, and on again."""
        for change in self.journal[: self.random.randint(0, len(self.journal))]:
            _apply(self.durable, change)
        self.journal = []
        kept = dict(self.durable)
        folders = [p for p, inode in self.names.items() if inode.data is None]
        if any(path not in kept for path in folders):  # what was in a folder that is lost is lost with it
            kept = {path: inode for path, inode in kept.items() if _reachable(kept, path)}
        self.names, self.durable, self.inside = kept, dict(kept), {}
        for path in kept:
            self.inside.setdefault(path.parent, set()).add(path.name)
        for inode in kept.values():
            if inode.data is not None:
                inode.synced = self._torn(inode)
                inode.data = bytearray(inode.synced)

    def _torn(self, inode: Inode) -> bytes:
        assert inode.data is not None
        now, synced = bytes(inode.data), inode.synced
        if not now.startswith(synced):  # truncated or written anew since: either may have reached the disk
            return self.random.choice([synced, synced[: len(now)]])
        tail = now[len(synced) :]
        tail = tail[: self.random.randint(0, len(tail))]
        return synced + self.random.choice([tail, bytes(len(tail)), self.random.randbytes(len(tail))])

    def change(self, gone: Path | None, made: Path | None, inode: Inode | None) -> None:
        """A name changes, for now."""
        change = Change(gone, made, inode)
        self.journal.append(change)
        _apply(self.names, change)
        if gone is not None:
            self.inside.get(gone.parent, set()).discard(gone.name)
        if made is not None:
            self.inside.setdefault(made.parent, set()).add(made.name)

    def sync(self, folder: Path) -> None:
        """Makes the names in a folder durable."""
        rest = []
        for change in self.journal:
            if change.touches(folder):
                _apply(self.durable, change)
            else:
                rest.append(change)
        self.journal = rest

    def write(self, inode: Inode, data: bytes) -> None:
        """Appends what fits. Raises OSError ENOSPC where that is not all."""
        assert inode.data is not None
        left = max(0, self.room - self.used())
        inode.data += data[:left]
        inode.touched = self.now()
        if len(data) > left:
            raise OSError(errno.ENOSPC, "No space left on device")

    def used(self) -> int:
        """Bytes in all files."""
        return sum(len(inode.data) for inode in self.names.values() if inode.data is not None)

    def within(self, folder: Path) -> list[str]:
        """Names in a folder, in order."""
        return sorted(name for name in self.inside.get(folder, ()) if name)

    def mkdir(self, folder: Path) -> None:
        """With those above it."""
        if folder in self.names:
            return
        for path in [*reversed(folder.parents), folder]:
            if path not in self.names:
                self.change(None, path, Inode(None))


def _apply(names: dict[Path, Inode], change: Change) -> None:
    if change.gone is not None:
        names.pop(change.gone, None)
    if change.made is not None and change.inode is not None:
        names[change.made] = change.inode


def _reachable(names: dict[Path, Inode], path: Path) -> bool:
    return all(parent in names for parent in path.parents)


class BlobFiles:
    """``insitu.store.blobs.files.Files`` of one process on a platter."""

    def __init__(self, platter: Platter, process: Process, arrived: Callable[[str, bytes], None]) -> None:
        self._platter, self._process, self._arrived = platter, process, arrived

    def open(self, path: Path, *, new: bool) -> Inode:
        self._process.check()
        if path.parent not in self._platter.names:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
        inode = self._platter.names.get(path)
        if inode is None:
            if not new:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            inode = Inode(bytearray(), touched=self._platter.now())
            self._platter.change(None, path, inode)
        if new:
            inode.data = bytearray()
        return inode

    def write(self, handle: Inode, data: memoryview) -> None:
        self._process.check()
        self._platter.write(handle, bytes(data))

    def truncate(self, handle: Inode, length: int) -> None:
        self._process.check()
        assert handle.data is not None
        del handle.data[length:]

    def fsync(self, handle: Inode) -> None:
        self._process.check()
        assert handle.data is not None
        handle.synced = bytes(handle.data)

    def close(self, handle: Inode) -> None:
        assert isinstance(handle, Inode)

    def read(self, path: Path, offset: int, length: int | None) -> bytes:
        inode = self._platter.names.get(path)
        if inode is None or inode.data is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return bytes(inode.data[offset : None if length is None else offset + length])

    def fill(self, path: Path, offset: int, room: memoryview) -> int:
        data = self.read(path, offset, len(room))
        room[: len(data)] = data
        return len(data)

    def size(self, path: Path) -> int | None:
        inode = self._platter.names.get(path)
        return None if inode is None else len(inode.data or b"")

    def age(self, path: Path) -> float | None:
        inode = self._platter.names.get(path)
        return None if inode is None else self._platter.now() - inode.touched

    def touch(self, path: Path) -> None:
        self._process.check()
        self._platter.names[path].touched = self._platter.now()

    def rename(self, old: Path, new: Path) -> None:
        self._process.check()
        inode = self._platter.names.get(old)
        if inode is None or new.parent not in self._platter.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(old))
        self._platter.change(old, new, inode)
        if len(new.name) == 64 and inode.data is not None:
            self._arrived(new.name, bytes(inode.data))

    def remove(self, path: Path) -> None:
        self._process.check()
        if path in self._platter.names:
            self._platter.change(path, None, None)

    def list(self, folder: Path) -> list[str]:
        return self._platter.within(folder)

    def mkdir(self, folder: Path) -> None:
        self._process.check()
        self._platter.mkdir(folder)

    def sync_folder(self, folder: Path) -> None:
        self._process.check()
        if folder not in self._platter.names:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
        self._platter.sync(folder)


class SiteDisk:
    """``insitu.engines.https.site.disk.Disk`` of one site's process on a platter, as ``Folder`` promises it."""

    def __init__(self, platter: Platter, process: Process) -> None:
        self._platter, self._process = platter, process

    def read(self, *names: str) -> bytes:
        inode = self._platter.names.get(_path(names))
        if inode is None or inode.data is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", "/".join(names))
        return bytes(inode.data)

    def write(self, data: bytes, *names: str, durable: bool = True) -> None:
        """The new file takes the old one's place when all of it is there."""
        self._process.check()
        platter, path = self._platter, _path(names)
        inode = Inode(bytearray(), touched=platter.now())
        aside = path.with_name(f".{path.name}")
        platter.mkdir(path.parent)
        platter.change(None, aside, inode)
        try:
            platter.write(inode, data)
        except OSError:
            platter.change(aside, None, None)
            raise
        if durable:
            inode.synced = bytes(data)
        platter.change(aside, path, inode)
        if durable:
            for folder in path.parents:
                platter.sync(folder)

    def remove(self, *names: str) -> None:
        self._process.check()
        path = _path(names)
        for other in [p for p in self._platter.names if p == path or path in p.parents]:
            self._platter.change(other, None, None)

    def list(self, *names: str) -> dict[str, int]:
        folder, found = _path(names), []
        for name in self._platter.within(folder):
            if not name.startswith("."):
                inode = self._platter.names[folder / name]
                found.append((inode.touched, name, len(inode.data or b"")))
        return {name: size for _, name, size in sorted(found)}


def _path(names: tuple[str, ...]) -> Path:
    return Path("/").joinpath(*names)
