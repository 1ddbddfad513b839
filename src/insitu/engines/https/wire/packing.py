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
from insitu.core.federation import Blobs
from insitu.core.stored import Stored

CHUNK = 4 * 2**20
"""The largest chunk in bytes."""
PROTOCOL = 1
AHEAD = 64 * 2**10
"""Bytes of a chunk that are read where fewer are wanted."""
Fill = Callable[[str, int, memoryview], int]
"""Puts the bytes of the chunk with this digest, from this one on, into a room, and says how many there were."""


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
    return gathered(manifest, whole_chunks(read))


def gathered(manifest: Mapping[str, Any], fill: Fill) -> Any:
    """The tree, each array put together where it will stay: memory is the tree. Raises Refusal as :func:`unpack`."""
    return _decoded(manifest, Stream(manifest["chunks"], fill).take)


def left_there(manifest: Mapping[str, Any], fill: Fill) -> Any:
    """The tree with :class:`~insitu.core.stored.Stored` leaves: their numbers stay in the chunks until they are read.

    Raises Refusal BAD_MANIFEST as :func:`unpack`, for all but the numbers.
    """
    stream = Stream(manifest["chunks"], fill)

    def leaf(entry: Mapping[str, Any], first: int) -> Stored:
        return Stored(tuple(entry["shape"]), entry["dtype"], entry["kind"], first, stream.read)

    return _decoded(manifest, stream.take, leaf)


def _decoded(manifest: Mapping[str, Any], take: Callable[[int], Any], leaf: Any = None) -> Any:
    try:
        tree, table = wire.decode_stream(take, manifest["length"], leaf)
    except WireError as error:
        raise Refusal("BAD_MANIFEST", f"the chunks hold no tree: {error}") from error
    if table != list(manifest["tensors"]):
        raise Refusal("BAD_MANIFEST", "the table of tensors in the manifest is not that of the chunks")
    return tree


class Stream:
    """Bytes from anywhere in the chunks: ``fill(digest, offset, room)`` puts those of a chunk into ``room``.

    A short read takes those behind it along: a model may have ten thousand small arrays.
    """

    def __init__(self, chunks: Sequence[Sequence[Any]], fill: Fill) -> None:
        self._chunks, self._fill = chunks, fill
        self._starts = list(accumulate((length for _, length in chunks), initial=0))
        self._at = 0
        self._ahead: tuple[int, memoryview] = (0, memoryview(b""))

    def read(self, first: int, count: int) -> memoryview:
        """So many bytes from ``first`` on, in memory that is the caller's."""
        room = np.empty(count, np.uint8).data  # as fast as can be: nothing is cleared that is written anyway
        self.fill(first, room)
        return room

    def take(self, count: int) -> memoryview:
        """The bytes behind those that were taken last, in memory that is the caller's."""
        self._at += count
        return self.read(self._at - count, count)

    def fill(self, first: int, room: memoryview) -> None:
        """The bytes from ``first`` on, put into ``room``. Raises WireError where there are fewer."""
        end = self._starts[-1]
        if first + len(room) > end:
            raise WireError(f"the chunks end at byte {end}, before byte {first + len(room)}")
        if len(room) >= AHEAD:
            self._read(first, room)
            return
        begin, there = self._ahead
        if not begin <= first <= first + len(room) <= begin + len(there):
            of_chunk = self._starts[bisect_right(self._starts, first)] - first if room else 0  # no other one is begun
            begin, there = first, memoryview(bytearray(max(len(room), min(AHEAD, of_chunk))))
            self._read(begin, there)
            self._ahead = begin, there
        room[:] = there[first - begin : first - begin + len(room)]

    def _read(self, first: int, room: memoryview) -> None:
        i, done = bisect_right(self._starts, first) - 1, 0
        while done < len(room):
            digest, length = self._chunks[i]
            offset = first + done - self._starts[i]
            some = room[done : done + length - offset]
            count = self._fill(digest, offset, some)
            if count != len(some):
                raise WireError(f"chunk {digest} has {offset + count} bytes, not {length}")
            done += count
            i += 1


def filling(blobs: Blobs) -> Fill:
    """Of chunks that are known to be there and whole: their digests were compared when they came, and are not again."""
    return blobs.fill if blobs.near else whole_chunks(lambda digest: blobs.read(digest, 0, CHUNK))


def whole_chunks(read: Callable[[str], bytes]) -> Fill:
    """For chunks of which each is read as a whole, once where it is asked for from its first byte to its last."""
    kept: tuple[str, memoryview] = ("", memoryview(b""))

    def fill(digest: str, offset: int, room: memoryview) -> int:
        nonlocal kept
        if digest != kept[0]:
            kept = ("", memoryview(b""))  # or there would be two of them while the next one is read
            kept = digest, memoryview(read(digest))
        data = kept[1][offset : offset + len(room)]
        room[: len(data)] = data
        return len(data)

    return fill
