"""Frames between a parent and one worker, over a socket pair that nobody else has: nobody to authenticate."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from insitu.engines.processes.pack import Packed, pack

_HEADER = struct.Struct("<HIQ")
"""Tag, how many parts, number; the parts' sizes and the parts follow."""

_AT_ONCE = 512
"""Parts that are sent with one call. Linux and macOS take 1024."""


class Tag(IntEnum):
    """What a frame is. Down: the first six; up: the last three."""

    LOAD = 1
    OPEN = 2
    MESSAGE = 3
    BLOCK = 4
    CANCEL = 5
    STOP = 6
    READY = 7
    REFUSED = 8
    DONE = 9


@dataclass(frozen=True)
class Frame:
    """One thing said: ``number`` is the block's or message's, so that late answers can be told apart."""

    tag: Tag
    number: int
    packed: Packed


class Channel:
    """One end: one thread sends, one receives. Both raise OSError or EOFError where the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """The socket's file descriptor, to wait for."""
        return self._socket.fileno()

    def send(self, tag: Tag, number: int = 0, value: Any = None) -> None:
        """Sends an object."""
        self.post(Frame(tag, number, pack(value)))

    def post(self, frame: Frame) -> None:
        """Sends what was packed before."""
        parts = [memoryview(part).cast("B") for part in (frame.packed.head, *frame.packed.buffers)]
        sizes = struct.pack(f"<{len(parts)}Q", *(part.nbytes for part in parts))
        head = _HEADER.pack(frame.tag, len(parts), frame.number) + sizes
        self._send_all([memoryview(head), *(part for part in parts if part.nbytes)])

    def receive(self) -> Frame:
        """The next frame, as soon as all of it is here."""
        tag, parts, number = _HEADER.unpack(self._take(_HEADER.size))
        sizes = struct.unpack(f"<{parts}Q", self._take(8 * parts))
        head, *buffers = (self._take(size) for size in sizes)
        return Frame(Tag(tag), number, Packed(head, buffers))

    def close(self) -> None:
        """Lets go of this end: the other end's next ``receive`` raises EOFError."""
        self._socket.close()

    def _send_all(self, parts: list[memoryview]) -> None:
        """All of them, none of which is empty, in as few calls as can be: each wakes whoever reads."""
        while parts:
            sent = self._socket.sendmsg(parts[:_AT_ONCE])
            while parts and sent >= parts[0].nbytes:
                sent -= parts.pop(0).nbytes
            if sent:
                parts[0] = parts[0][sent:]

    def _take(self, size: int) -> memoryview:
        """So many bytes, in memory that can be written to: an array made of it is like one made by its owner."""
        view = np.empty(size, np.uint8).data
        at = 0
        while at < size:
            got = self._socket.recv_into(view[at:])
            if not got:
                raise EOFError("the other process is gone")
            at += got
        return view
