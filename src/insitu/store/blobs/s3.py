"""Blobs in a bucket: parts arrive in a folder of this machine, and whole ones are objects by their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from xml.etree import ElementTree

from insitu.core import failpoints
from insitu.core.errors import BlobError
from insitu.store.blobs.bucket import Bucket, Reply
from insitu.store.blobs.folder import FolderBlobs, FolderPart
from insitu.store.blobs.names import checked


class S3Blobs:
    """At ``url`` (``s3://BUCKET/PREFIX?endpoint=…``), which must be there; parts in the folder ``spool``.

    A bucket's answer says that an object is durable, so nothing is left for ``sync``. The request names the digest, and
    the server refuses other bytes. All may be called from any thread. Raises BlobError for what is not there or not
    what it was said to be, DiskFull and StoreError.
    """

    near = False  # every portion is a request

    def __init__(self, url: str, spool: str | Path) -> None:
        self.bucket = Bucket(url)
        self._spool = FolderBlobs(spool)
        self.bucket.ask("GET", None, query={"list-type": "2", "max-keys": "1"})  # says now what is wrong with it

    def length(self, digest: str) -> int | None:
        reply = self.bucket.ask("HEAD", checked(digest), allowed=(200, 404))
        return int(reply.headers["content-length"]) if reply.status == 200 else None

    def read(self, digest: str, offset: int = 0, length: int | None = None) -> bytes:
        """All of it, or ``length`` bytes from ``offset`` on. A whole one that is damaged is a BlobError."""
        some = offset > 0 or length is not None
        if length is not None and length <= 0:
            return b""
        last = "" if length is None else str(offset + length - 1)
        headers = {"range": f"bytes={offset}-{last}"} if some else {}
        reply = self.bucket.ask("GET", checked(digest), headers=headers, allowed=(200, 206, 404, 416))
        if reply.status == 404:
            raise BlobError(f"{self.bucket.place} has no blob {digest}: it never arrived, or was removed")
        if reply.status == 416:
            return b""  # begins behind its end
        if reply.status == 206:
            return reply.body
        if hashlib.sha256(reply.body).hexdigest() != digest:
            raise BlobError(f"{self.bucket.place}: the blob {digest} is damaged: restore a copy of it")
        return reply.body[offset:] if length is None else reply.body[offset : offset + length]

    def fill(self, digest: str, offset: int, room: memoryview) -> int:
        data = self.read(digest, offset, len(room))
        room[: len(data)] = data
        return len(data)

    def put(self, data: bytes | memoryview) -> str:
        """Keeps it durably, and returns its digest. One that is there already is young again."""
        digest = hashlib.sha256(data).hexdigest()
        self._upload(digest, memoryview(data).cast("B"))
        return digest

    def part(self, owner: str, digest: str, length: int) -> S3Part:
        return S3Part(self, self._spool.part(owner, digest, length), digest)

    def arrived(self, owner: str, digest: str) -> int:
        return self._spool.arrived(owner, digest)

    def sync(self) -> None:
        """Nothing: what was finished is in the bucket, and a part that was suspended on this machine's disk."""

    def shown(self, digest: str) -> None:
        """Nothing to do: it is in the bucket, whoever has put it there."""
        checked(digest)

    def remove(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.bucket.ask("DELETE", checked(digest), allowed=(200, 204, 404))

    def sweep(self, keep: Iterable[str], older: float) -> int:
        kept = set(keep)
        old = [name for name, age in self._listed() if name not in kept and age >= older]
        self.remove(old)
        return len(old) + self._spool.sweep([], older)

    def _upload(self, digest: str, data: memoryview) -> None:
        failpoints.hit("blob.upload.before")
        self.bucket.ask("PUT", digest, body=data, payload=digest)
        failpoints.hit("blob.upload.after")

    def _listed(self) -> Iterator[tuple[str, float]]:
        """Name and age, in seconds by the server's clock, of every blob under the prefix."""
        query = {"list-type": "2", "prefix": self.bucket.prefix}
        while True:
            reply = self.bucket.ask("GET", None, query=query)
            found, more = _objects(reply)
            now = parsedate_to_datetime(reply.headers["date"])
            for key, changed in found:
                name = key.removeprefix(self.bucket.prefix)
                if len(name) == 64 and "/" not in name:
                    yield name, (now - changed).total_seconds()
            if not more:
                return
            query["continuation-token"] = more


class S3Part:
    """A part in the spool, which becomes an object when it is whole. Where that fails it can be tried again."""

    def __init__(self, blobs: S3Blobs, part: FolderPart, digest: str) -> None:
        self._blobs, self._part, self._digest = blobs, part, digest

    @property
    def offset(self) -> int:
        return self._part.offset

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._part.write(data)

    def finish(self) -> None:
        self._blobs._upload(self._digest, memoryview(self._part.whole()))
        self._part.abandon()

    def suspend(self) -> None:
        self._part.suspend()

    def abandon(self) -> None:
        self._part.abandon()


def _objects(reply: Reply) -> tuple[list[tuple[str, datetime]], str]:
    """Keys with the time of their last change, and the token of the next page, empty where this is the last."""
    root = ElementTree.fromstring(reply.body)
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    found = [
        (one.findtext(f"{space}Key", ""), datetime.fromisoformat(one.findtext(f"{space}LastModified", "")))
        for one in root.iter(f"{space}Contents")
    ]
    return found, root.findtext(f"{space}NextContinuationToken", "")
