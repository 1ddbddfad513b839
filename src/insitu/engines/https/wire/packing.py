"""A tree ⇄ chunks of at most 4 MiB and a manifest; neither side ever holds the bytes as a whole."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from insitu.core import wire
from insitu.core.errors import Refusal, WireError
from insitu.core.stored import Stored

CHUNK = 4 * 2**20
"""The largest chunk in bytes."""
PROTOCOL = 1


def pack(tree: Any, holds: str, keep: Callable[[bytes], str]) -> dict[str, Any]:
    """Cuts the tree's frame into chunks, gives each to ``keep``, which returns its SHA-256, and says what they hold.

    The frame is that of :mod:`insitu.core.wire` without its final digest, since every chunk has one. ``holds`` is
    ``message`` or ``update``. Raises WireError for what is not a tree.
    """
    buffers, table = wire.frame(tree)
    chunks: list[list[Any]] = []
    for chunk in wire.cut(buffers, CHUNK):
        chunks.append([keep(chunk), len(chunk)])
    return {
        "protocol": PROTOCOL,
        "holds": holds,
        "length": sum(length for _, length in chunks),
        "chunks": chunks,
        "tensors": table,
        "digest": whole(chunks),
    }


def whole(chunks: Sequence[Sequence[Any]]) -> str:
    """SHA-256 over the chunks' digests (32 bytes each): ties all of them, in their order, together."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest, _ in chunks)).hexdigest()


def unpack(manifest: Mapping[str, Any], read: Callable[[str], bytes]) -> Any:
    """The tree, chunk after chunk: memory is the tree and one chunk.

    ``read`` gives a chunk by its digest, checked when it was stored. Raises Refusal BAD_MANIFEST where the frame is
    no tree, or its table of tensors is not the manifest's.
    """
    return _decoded(manifest, Source(manifest["chunks"], read).take)


def left_there(manifest: Mapping[str, Any], read: Callable[[str, int, int], bytes], portion: int = CHUNK) -> Any:
    """The tree with :class:`~insitu.core.stored.Stored` leaves: their numbers stay in the chunks until they are read.

    ``read`` gives bytes of a chunk by its digest, the first one's offset and their number, of which ``portion`` at most
    are held. Raises Refusal BAD_MANIFEST as :func:`unpack`, for all but the numbers.
    """
    stream = Stream(manifest["chunks"], read, portion)

    def leaf(entry: Mapping[str, Any], first: int) -> Stored:
        return Stored(tuple(entry["shape"]), entry["dtype"], entry["kind"], first, stream.read)

    return _decoded(manifest, lambda count: stream.read(stream.at, count), leaf)


def _decoded(manifest: Mapping[str, Any], take: Callable[[int], Any], leaf: Any = None) -> Any:
    try:
        tree, table = wire.decode_stream(take, manifest["length"], leaf)
    except WireError as error:
        raise Refusal("BAD_MANIFEST", f"the chunks hold no tree: {error}") from error
    if table != list(manifest["tensors"]):
        raise Refusal("BAD_MANIFEST", "the table of tensors in the manifest is not that of the chunks")
    return tree


class Source:
    """Bytes in any portion from chunks that are read one at a time."""

    def __init__(self, chunks: Sequence[Sequence[Any]], read: Callable[[str], bytes]) -> None:
        self._chunks, self._read = iter(chunks), read
        self._left = memoryview(b"")

    def take(self, count: int) -> memoryview:
        """The next bytes, in memory that is the caller's."""
        found = np.empty(count, np.uint8).data  # as fast as can be: nothing is cleared that is written anyway
        self.fill(found)
        return found

    def fill(self, found: memoryview) -> None:
        """The next bytes, put into this."""
        at, count = 0, len(found)
        while at < count:
            if not self._left:
                digest, length = next(self._chunks, (None, 0))
                if digest is None:
                    raise WireError(f"the chunks end {count - at} bytes too early")
                self._left = memoryview(self._read(digest))
                if len(self._left) != length:
                    raise WireError(f"chunk {digest} has {len(self._left)} bytes, not {length}")
            some = self._left[: count - at]
            found[at : at + len(some)] = some
            self._left = self._left[len(some) :]
            at += len(some)


class Stream:
    """Bytes from anywhere in the chunks, which are read a ``portion`` at a time: best from the first to the last."""

    def __init__(self, chunks: Sequence[Sequence[Any]], read: Callable[[str, int, int], bytes], portion: int) -> None:
        self._chunks, self._read, self._portion = chunks, read, portion
        self._starts = list(accumulate((length for _, length in chunks), initial=0))
        self._left = memoryview(b"")
        self.at = 0

    def read(self, first: int, count: int) -> memoryview:
        """So many bytes from ``first`` on, in memory that is the caller's."""
        if first != self.at:
            self._left, self.at = memoryview(b""), first
        found = np.empty(count, np.uint8).data
        done = 0
        while done < count:
            if not self._left:
                self._left = self._portion_at(self.at)
            some = self._left[: count - done]
            found[done : done + len(some)] = some
            self._left = self._left[len(some) :]
            self.at += len(some)
            done += len(some)
        return found

    def _portion_at(self, at: int) -> memoryview:
        i = bisect_right(self._starts, at) - 1
        if i >= len(self._chunks):
            raise WireError(f"the chunks end at byte {self._starts[-1]}, before byte {at}")
        digest, length = self._chunks[i]
        offset = at - self._starts[i]
        wanted = min(self._portion, length - offset)
        data = self._read(digest, offset, wanted)
        if len(data) != wanted:
            raise WireError(f"chunk {digest} has {offset + len(data)} bytes, not {length}")
        return memoryview(data)
