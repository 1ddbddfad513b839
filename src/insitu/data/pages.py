"""Numbers whose bytes lie in a Parquet file as they do in memory: read as they are.

Without compression and dictionary, a page of a column is a header, levels that say where something is missing or where
a list begins, and the numbers, one behind the other, up to the page's end. Where nothing is missing and all lists are
of one length, the levels say nothing. Arrow looks at them all the same, number by number, which takes several times as
long as reading the page.

That nothing is missing is what the file's statistics say, and they may be wrong. So it is looked at in each page: what
is missing has a level and no number, and the page is that much shorter than its levels and all of its numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from insitu.data.reading import File

KINDS = {"FLOAT": "f4", "DOUBLE": "f8", "INT32": "i4", "INT64": "i8"}
"""Parquet's types that are a NumPy type's bytes; unsigned numbers are stored in those of the same size."""
DATA_PAGE, PLAIN, RLE = 0, 0, 3
READ = {"PLAIN", "RLE", "BIT_PACKED"}
"""What a column's encodings may be, as its file names them: those of its levels are among them."""
LONGEST = 1 << 12
"""Bytes of a page's header; those of longer ones (smallest and largest texts are in them) are not looked at."""
_HEADER = {"type": 1, "size": 3, "data page": 5}
_DATA_PAGE = {"values": 1, "encoding": 2, "definition": 3, "repetition": 4}
"""The numbers of the fields in the format's ``PageHeader`` and ``DataPageHeader``; all others are passed over."""


def as_they_are(chunk: Any, dtype: np.dtype, count: int) -> bool:
    """Whether a row group's column may hold ``count`` numbers of this type, none of them missing, as bytes."""
    statistics = chunk.statistics
    return (
        chunk.compression == "UNCOMPRESSED"
        and not chunk.has_dictionary_page
        and set(chunk.encodings) <= READ
        and chunk.num_values == count
        and statistics is not None
        and statistics.has_null_count
        and statistics.null_count == 0
        and chunk.physical_type in KINDS
        and dtype.kind in "iuf"
        and (dtype.kind == "f") == (KINDS[chunk.physical_type][0] == "f")
        and dtype.itemsize == np.dtype(KINDS[chunk.physical_type]).itemsize
        and sys.byteorder == "little"
    )


def numbers(file: File, chunk: Any, levels: Sequence[str], into: np.ndarray) -> bool:
    """Fills a contiguous array with a column's numbers; False where a page holds them in another way, or not all.

    ``levels`` are those that its pages have, of :func:`levels_of`.
    """
    raw = file.array(chunk.data_page_offset, (chunk.total_compressed_size,), np.dtype(np.uint8))
    flat, at, done = into.reshape(-1).view(np.uint8), 0, 0
    while done < len(flat):
        try:
            header, length = _struct(raw[at : at + LONGEST].tobytes(), 0)
            at += length
            page = header[_HEADER["data page"]]
            size, plain = header[_HEADER["size"]], page[_DATA_PAGE["encoding"]] == PLAIN
            bytes_ = page[_DATA_PAGE["values"]] * into.itemsize
            plain = plain and all(page[_DATA_PAGE[level]] == RLE for level in levels)
        except (LookupError, TypeError, ValueError):  # not a header that we know
            return False
        at += size
        if header[_HEADER["type"]] != DATA_PAGE or not plain or at > len(raw):
            return False
        if not 0 < bytes_ <= len(flat) - done or _levels_end(raw, at - size, len(levels)) != at - bytes_:
            return False
        flat[done : done + bytes_] = raw[at - bytes_ : at]
        done += bytes_
    return True


def levels_of(column: Any) -> tuple[str, ...]:
    """The levels before the numbers of a column, given its part of the schema: ``repetition``, ``definition``."""
    found = {"repetition": column.max_repetition_level, "definition": column.max_definition_level}
    return tuple(name for name, most in found.items() if most)


def _levels_end(raw: np.ndarray, at: int, count: int) -> int:
    """Where so many levels end that begin at a byte: each is its length, in four bytes, and that many."""
    for _ in range(count):
        at += 4 + int.from_bytes(raw[at : at + 4].tobytes(), "little")
    return at


BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 12
"""Types in Thrift's compact protocol, in which headers are written."""


def _struct(raw: bytes, at: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends. Raises ValueError for what no page header holds."""
    fields: dict[int, Any] = {}
    number = 0
    while head := raw[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(raw, at)
        kind = head & 15
        if kind in INTEGERS:
            fields[number], at = _integer(raw, at)
        elif kind == STRUCT:
            fields[number], at = _struct(raw, at)
        elif kind == BINARY:
            length, at = _varint(raw, at)
            at += length
        elif kind in (BYTE, DOUBLE):
            at += 1 if kind == BYTE else 8
        elif kind not in BOOLEANS:
            raise ValueError(f"a field of type {kind}")
    return fields, at + 1


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _integer(raw: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(raw, at)
    return (value >> 1) ^ -(value & 1), at
