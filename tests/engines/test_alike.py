"""Columns of objects, and the channel that they go through."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from threading import Thread

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from insitu.core.types import Answer, Failure, Folded, Report, Task, Update
from insitu.engines.processes.alike import alike
from insitu.engines.processes.channel import _AT_ONCE, Channel, Frame, Tag
from insitu.engines.processes.orders import Done
from insitu.engines.processes.pack import Packed, pack, unpack


@dataclass(frozen=True)
class Thing:
    """Something with fields."""

    name: str
    number: int
    message: dict


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 2)), min_size=1, max_size=6), st.booleans())
def test_columns_are_the_objects_again(fields, one_message):
    """In their order, whatever fields they share."""
    shared = {"a": 1}
    things = [Thing(name, number, shared if one_message else {"a": number}) for name, number in fields]
    assert unpack(pack(alike(things))).apart() == things


def test_a_field_may_be_left_out_and_given_back():
    """What all know already does not travel."""
    things = [Thing(str(i), i, {"secret": 2**70 + i}) for i in range(3)]
    there = unpack(pack(alike(things, message=None)))
    assert [thing.message for thing in there.apart()] == [None] * 3
    message = {"known": 1}
    back = there.apart(message=message)
    assert [(thing.name, thing.number) for thing in back] == [("0", 0), ("1", 1), ("2", 2)]
    assert all(thing.message is message for thing in back)


def test_what_all_objects_share_is_there_once():
    """As many times as there are objects it would cost what columns are to save."""
    message = {"a": np.arange(100)}
    flat = alike([Thing(str(i), 7, message) for i in range(50)])
    assert flat.same["message"] is message
    assert list(flat.each) == ["name"]


def test_reports_find_their_block_again():
    """A Done lends its reports to columns, block by block."""
    reports = [
        [Report(f"{b}{i}", i, {"loss": b + i / 3}, 8 * i, {"own": i} if i == b else None) for i in range(n)]
        for b, n in enumerate((3, 1, 4))
    ]
    folded = [Folded(b, {"sum": b}, own) for b, own in enumerate(reports)]
    task = Task("run", 1, 0, "train", "x", {}, 7)
    others = [Failure("lost", 9, 0, "why", "where"), Answer(task, Update({"shared": 1}, {"shared": 2.0}))]
    done = Done([others[0], folded[0], folded[1], others[1], folded[2]], {"lanes": 2}, ["told"])
    assert unpack(pack(done.flat())).whole() == done


def test_frames_of_more_parts_than_one_call_takes():
    """Larger than the socket's memory too, and with parts of no bytes among them."""
    parts = [bytes([i % 251]) * (i * 7 % 5000) for i in range(2 * _AT_ONCE + 3)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = Thread(
            target=Channel(ours).post, args=(Frame(Tag.BLOCK, 5, Packed(b"head", list(map(memoryview, parts)))),)
        )
        sender.start()
        frame = Channel(theirs).receive()
        sender.join()
    assert (frame.tag, frame.number, bytes(frame.packed.head)) == (Tag.BLOCK, 5, b"head")
    assert [bytes(part) for part in frame.packed.buffers] == parts
