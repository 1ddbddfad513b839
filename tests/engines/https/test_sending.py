"""Chunks as they are read for an answer: by pieces where the blobs are near, at once where each read is a request."""

from __future__ import annotations

import asyncio

import pytest

from insitu.core.errors import StoreError
from insitu.engines.https.api import sending
from insitu.engines.https.http import Gone, Stored


class Blobs:
    def __init__(self, data, near=True, broken_at=None):
        self.data, self.near, self.broken_at, self.asked = data, near, broken_at, []

    def read(self, digest, offset, length):
        self.asked.append((offset, length))
        if self.broken_at is not None and offset >= self.broken_at:
            raise StoreError("the disk is gone")
        return self.data[offset : offset + length]


async def at_once(work):
    return work()


def body_of(blobs, offset, length):
    async def gathered():
        body = await sending.taken(blobs, at_once, Stored("d", offset, length))
        return [body] if isinstance(body, bytes) else [piece async for piece in body]

    return asyncio.run(gathered())


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(sending, "PIECE", 100)


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 200, 250])
@pytest.mark.parametrize("offset", [0, 7])
def test_the_pieces_are_the_chunk(offset, length):
    blobs = Blobs(bytes(range(256)) * 2)
    got = body_of(blobs, offset, length)
    assert b"".join(got) == blobs.data[offset : offset + length]
    assert max(map(len, got)) <= 100


def test_where_each_read_is_a_request_there_is_one():
    blobs = Blobs(bytes(1000), near=False)
    assert body_of(blobs, 10, 900) == [bytes(900)]
    assert blobs.asked == [(10, 900)]


def test_a_beginning_that_cannot_be_read_is_an_error_before_the_answer():
    with pytest.raises(StoreError):
        asyncio.run(sending.taken(Blobs(bytes(500), broken_at=0), at_once, Stored("d", 0, 500)))


def test_a_rest_that_cannot_be_read_ends_the_connection(caplog):
    with pytest.raises(Gone, match="broke off at 200 of 500"):
        body_of(Blobs(bytes(500), broken_at=200), 0, 500)
    assert "the disk is gone" in caplog.text
