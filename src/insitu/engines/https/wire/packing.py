"""A tree ⇄ chunks of at most 4 MiB and a manifest; neither side ever holds the bytes as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from insitu.core import wire
from insitu.core.errors import Refusal, WireError

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
    for chunk in _cut(buffers):
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
    source = Source(manifest["chunks"], read)
    try:
        tree, table = wire.decode_stream(source.take, manifest["length"])
    except WireError as error:
        raise Refusal("BAD_MANIFEST", f"the chunks hold no tree: {error}") from error
    if table != list(manifest["tensors"]):
        raise Refusal("BAD_MANIFEST", "the table of tensors in the manifest is not that of the chunks")
    return tree


def _cut(buffers: Sequence[Any]) -> Iterator[bytes]:
    """The buffers as one stream, in pieces of CHUNK bytes."""
    piece = bytearray()
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        at = 0
        while at < len(view):
            some = view[at : at + CHUNK - len(piece)]
            piece += some
            at += len(some)
            if len(piece) == CHUNK:
                yield bytes(piece)
                piece = bytearray()
    if piece:
        yield bytes(piece)


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
