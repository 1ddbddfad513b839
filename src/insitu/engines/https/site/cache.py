"""Chunks that a site was given before: a model that it has is not sent again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection

from insitu.engines.https.site.disk import Disk

FOLDER = "cache"


class Cache:
    """Chunks by their SHA-256, at most so many ``bytes`` of them: what was used longest ago goes first."""

    def __init__(self, disk: Disk, bytes: int) -> None:
        self._disk, self._limit = disk, bytes
        self._known: OrderedDict[str, int] = OrderedDict(disk.list(FOLDER))
        self._held = sum(self._known.values())

    def has(self, digest: str) -> bool:
        """Whether it is there, as far as is known without reading it."""
        return digest in self._known

    def get(self, digest: str) -> bytes | None:
        """The chunk; None where it is not there, or no longer what it was."""
        if digest not in self._known:
            return None
        try:
            data = self._disk.read(FOLDER, digest)
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != digest:
            self._drop(digest)
            return None
        self._known.move_to_end(digest)
        return data

    def put(self, digest: str, data: bytes, needed: Collection[str] = ()) -> None:
        """Keeps a chunk whose digest was checked; makes room, but not at the cost of those that are ``needed``."""
        if digest in self._known:
            return
        self._disk.write(data, FOLDER, digest, durable=False)  # its digest is looked at again when it is read
        self._known[digest] = len(data)
        self._held += len(data)
        for other in list(self._known):
            if self._held <= self._limit:
                break
            if other not in needed and other != digest:
                self._drop(other)

    def _drop(self, digest: str) -> None:
        self._held -= self._known.pop(digest)
        self._disk.remove(FOLDER, digest)
