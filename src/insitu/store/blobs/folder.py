"""Blobs in a folder: ``blobs/ab/abcd…`` whole ones, ``parts/OWNER/DIGEST.LENGTH`` those that are arriving.

A blob's bytes are synced before it is renamed to its digest, so whatever has that name is whole; folders are synced
after. A part's name says how many of its bytes are synced. What lies behind them after a crash may be anything, and is
cut off.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from insitu.core import failpoints
from insitu.core.errors import BlobError
from insitu.store.blobs.files import Files, RealFiles
from insitu.store.blobs.names import checked, of_owner, said


class FolderBlobs:
    """Made at ``root`` where it is not there. All may be called from any thread; a part, from one at a time.

    Raises BlobError for what is not there or not what it was said to be, DiskFull where
    there is no room (nothing is half there then, and the same may work later), StoreError for anything else.
    """

    near = True

    def __init__(self, root: str | Path, *, files: Files | None = None) -> None:
        self.root = Path(root)
        self.files: Files = files or RealFiles()
        self._lock = threading.RLock()
        self._syncing = threading.Lock()
        self._arriving: set[tuple[str, str]] = set()
        self._unsynced: set[Path] = set()
        self._me, self._count = uuid.uuid4().hex, itertools.count()
        with said(f"{self.root} cannot be made a folder of blobs"):
            self._make_folders()

    def length(self, digest: str) -> int | None:
        with said(f"{self.root}: the blob {digest} cannot be looked for"):
            return self.files.size(self._whole(digest))

    def read(self, digest: str, offset: int = 0, length: int | None = None) -> bytes:
        """All of it, or ``length`` bytes from ``offset`` on. A whole one that is damaged is a BlobError."""
        path = self._whole(digest)
        with said(f"{self.root}: the blob {digest} cannot be read"):
            try:
                data = self.files.read(path, offset, length)
            except FileNotFoundError as error:
                raise BlobError(f"{self.root} has no blob {digest}: it never arrived, or was removed") from error
        if offset == 0 and length is None and hashlib.sha256(data).hexdigest() != digest:
            raise BlobError(f"{self.root}: the blob {digest} is damaged: restore a copy of it")
        return data

    def fill(self, digest: str, offset: int, room: memoryview) -> int:
        path = self._whole(digest)
        with said(f"{self.root}: the blob {digest} cannot be read"):
            try:
                return self.files.fill(path, offset, room)
            except FileNotFoundError as error:
                raise BlobError(f"{self.root} has no blob {digest}: it never arrived, or was removed") from error

    def put(self, data: bytes | memoryview) -> str:
        """Keeps it durably, and returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._whole(digest)
        with said(f"{self.root}: the blob {digest} cannot be written"):
            if not self._touched(path):
                made = self.root / "new" / f"{self._me}.{next(self._count)}"
                try:
                    self._write_whole(made, memoryview(data).cast("B"))
                    self._show(made, path)
                except BaseException:
                    self._try_remove(made)
                    raise
            self._sync(path.parent)
        return digest

    def part(self, owner: str, digest: str, length: int) -> FolderPart:
        """What this owner has sent so far, to go on with; afresh where that cannot be the beginning of it."""
        key = (of_owner(owner), checked(digest))
        with self._lock:
            if key in self._arriving:
                raise BlobError(f"{digest} is arriving from {owner!r} already: end that first")
            self._arriving.add(key)
        try:
            with said(f"{self.root}: the part of {digest} from {owner!r} cannot be opened"):
                return FolderPart(self, key, length)
        except BaseException:
            self._ended(key)
            raise

    def arrived(self, owner: str, digest: str) -> int:
        with said(f"{self.root}: the part of {digest} from {owner!r} cannot be looked for"):
            found = self._kept((of_owner(owner), checked(digest)))
        return found[1] if found else 0

    def sync(self) -> None:
        # One at a time: a folder that is being synced is in no list, and whoever relies on it has to wait for that.
        with self._syncing, said(f"{self.root} cannot be synced"):
            with self._lock:
                folders = sorted(self._unsynced)
            for folder in folders:
                self._sync(folder)

    def shown(self, digest: str) -> None:
        """A folder's names are synced by whoever asks for it, not only by the process that has made them."""
        folder = self._whole(digest).parent
        with self._lock:
            self._unsynced.add(folder)

    def remove(self, digests: Iterable[str]) -> None:
        for digest in digests:
            with said(f"{self.root}: the blob {digest} cannot be removed"):
                self.files.remove(self._whole(digest))

    def sweep(self, keep: Iterable[str], older: float) -> int:
        kept, removed = set(keep), 0
        with said(f"{self.root} cannot be swept"):
            for folder in self.files.list(self.root / "blobs"):
                for name in self.files.list(self.root / "blobs" / folder):
                    removed += name not in kept and self._swept(self.root / "blobs" / folder / name, older)
            for name in self.files.list(self.root / "new"):
                removed += self._swept(self.root / "new" / name, older)
            for owner in self.files.list(self.root / "parts"):
                for name in self.files.list(self.root / "parts" / owner):
                    with self._lock:
                        arriving = (owner, name.partition(".")[0]) in self._arriving
                        removed += not arriving and self._swept(self.root / "parts" / owner / name, older)
        return removed

    # ------------------------------------------------------------ files

    def _make_folders(self) -> None:
        """All 256 of them now: one made later would have to be synced into its own before anything in it counts."""
        for name in ("parts", "new", *(f"blobs/{i:02x}" for i in range(256))):
            self.files.mkdir(self.root / name)
        for folder in (self.root / "blobs", self.root, self.root.parent):
            self.files.sync_folder(folder)

    def _whole(self, digest: str) -> Path:
        return self.root / "blobs" / checked(digest)[:2] / digest

    def _touched(self, path: Path) -> bool:
        """Whether the blob is there; then nobody sweeps it away as untouched."""
        with self._lock:
            there = self.files.size(path) is not None
            if there:
                self.files.touch(path)
            return there

    def _swept(self, path: Path, older: float) -> bool:
        with self._lock:
            age = self.files.age(path)
            if age is None or age < older:
                return False
            self.files.remove(path)
            return True

    def _write_whole(self, path: Path, data: memoryview) -> None:
        handle = self.files.open(path, new=True)
        try:
            self.files.write(handle, data)
            failpoints.hit("blob.fsync.before")
            self.files.fsync(handle)
            failpoints.hit("blob.fsync.after")
        finally:
            self.files.close(handle)

    def _show(self, made: Path, path: Path) -> None:
        """Gives a synced file its name; its folder is synced later."""
        failpoints.hit("blob.rename.before")
        with self._lock:
            self.files.rename(made, path)
            self._unsynced.add(path.parent)
        failpoints.hit("blob.rename.after")

    def _sync(self, folder: Path) -> None:
        """Out of the list first: what is renamed meanwhile puts it back."""
        with self._lock:
            self._unsynced.discard(folder)
        try:
            self.files.sync_folder(folder)
        except BaseException:
            with self._lock:
                self._unsynced.add(folder)
            raise
        failpoints.hit("blob.folder.after")

    def _try_remove(self, path: Path) -> None:
        try:
            self.files.remove(path)
        except OSError:
            return  # swept later: the reason why it had to go is the one to tell

    # ------------------------------------------------------------ parts

    def _folder(self, key: tuple[str, str]) -> Path:
        return self.root / "parts" / key[0]

    def _kept(self, key: tuple[str, str]) -> tuple[Path, int] | None:
        """The file of a part, and how many of its bytes are synced."""
        for name in self.files.list(self._folder(key)):
            digest, _, length = name.partition(".")
            if digest == key[1] and length.isdecimal():
                return self._folder(key) / name, int(length)
        return None

    def _ended(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._arriving.discard(key)


class FolderPart:
    """See ``core.federation.Part``. Ends with ``finish``, ``suspend`` or ``abandon``, not with a failed ``write``."""

    def __init__(self, blobs: FolderBlobs, key: tuple[str, str], length: int) -> None:
        self._blobs, self._files, self._key = blobs, blobs.files, key
        self._length = length
        self._hash = hashlib.sha256()
        self._handle: Any = None
        self._over = self._torn = False
        self.offset = 0
        kept = blobs._kept(key)
        if kept is not None and not self._goes_on(*kept):
            self._files.remove(kept[0])
            kept = None
        self._path = kept[0] if kept else blobs._folder(key) / f"{key[1]}.0"

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        if self.offset + len(view) > self._length:
            sent = self.offset + len(view)
            raise BlobError(f"{self._key[1]}: {sent} bytes, and {self._length} were declared: send what was declared")
        with said(f"{self._blobs.root}: the part of {self._key[1]} cannot be written"):
            handle = self._opened()
            if self._torn:
                self._files.truncate(handle, self.offset)
            self._torn = True
            try:
                self._files.write(handle, view)
            except OSError:
                with suppress(OSError):  # gives the room back at once where it can; the next write does otherwise
                    self._files.truncate(handle, self.offset)
                raise
            self._torn = False
        self._hash.update(view)
        self.offset += len(view)

    def finish(self) -> None:
        """Makes it visible, whole, under its digest; durable once the blobs are synced. A wrong one is thrown away."""
        self._check()
        with said(f"{self._blobs.root}: the blob {self._key[1]} cannot be written"):
            handle = self._opened()
            failpoints.hit("blob.fsync.before")
            self._files.fsync(handle)
            failpoints.hit("blob.fsync.after")
            self._blobs._show(self._path, self._blobs._whole(self._key[1]))
        self._close()

    def whole(self) -> bytes:
        """All of it, checked as ``finish`` does, for whoever keeps it elsewhere; the part goes on being one."""
        self._check()
        with said(f"{self._blobs.root}: the part of {self._key[1]} cannot be read"):
            self._opened()
            return self._files.read(self._path, 0, self._length)

    def _check(self) -> None:
        if self._over:
            raise BlobError(f"{self._key[1]}: this part has ended: open it anew")
        if self.offset != self._length:
            raise BlobError(f"{self._key[1]}: {self.offset} bytes of {self._length} are there: send the others first")
        if self._hash.hexdigest() != self._key[1]:
            self.abandon()
            raise BlobError(f"{self._key[1]}: what came has the digest {self._hash.hexdigest()}: send it anew")

    def suspend(self) -> None:
        """Keeps what has arrived, to go on later: synced, and named for its length."""
        try:
            if self._handle is not None:
                with said(f"{self._blobs.root}: the part of {self._key[1]} cannot be kept"):
                    self._files.fsync(self._handle)
                    named = self._blobs._folder(self._key) / f"{self._key[1]}.{self.offset}"
                    self._files.rename(self._path, named)
                    self._files.sync_folder(named.parent)
        finally:
            self._close()

    def abandon(self) -> None:
        try:
            if not self._over:
                with said(f"{self._blobs.root}: the part of {self._key[1]} cannot be removed"):
                    self._files.remove(self._path)
        finally:
            self._close()

    def _goes_on(self, path: Path, synced: int) -> bool:
        """Takes up the synced bytes of a file; False where they are fewer than its name says, or too many."""
        size = self._files.size(path)
        if size is None or size < synced or synced > self._length:
            return False
        self._handle = self._files.open(path, new=False)
        self._files.truncate(self._handle, synced)
        self._hash.update(self._files.read(path, 0, synced))
        self.offset = synced
        return True

    def _opened(self) -> Any:
        """The file, made with its owner's folder when the first byte comes."""
        if self._over:
            raise BlobError(f"{self._key[1]}: this part has ended: open it anew")
        if self._handle is None:
            if self._files.size(self._path.parent) is None:
                self._files.mkdir(self._path.parent)
                self._files.sync_folder(self._path.parent.parent)
            self._handle = self._files.open(self._path, new=True)
        return self._handle

    def _close(self) -> None:
        if self._over:
            return  # somebody else may have the part by now
        self._over = True
        handle, self._handle = self._handle, None
        self._blobs._ended(self._key)
        if handle is not None:
            self._files.close(handle)
