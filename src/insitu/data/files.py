"""Finding a data set's files, checking that they are the right ones, reading them. Nothing is downloaded.

A data set's files lie in a folder of its name below a *root*: the argument ``root``; without it what the
environment variable ``INSITU_DATA`` says; without that ``../shared/data`` beside the current directory or
beside the project.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core.errors import DataError

_PROJECT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Files:
    """The files of one data set.

    folder  the folder below the root
    origin  where the files can be had
    sha256  the SHA-256 of each file by name
    """

    folder: str
    origin: str
    sha256: Mapping[str, str]

    def read(self, name: str, root: Any = None) -> bytes:
        """The file's content, unpacked where the name ends in ``.gz``.

        Where only the unpacked file is there, that one is read (and checked, where its checksum is known).

        Raises:
            DataError: the file is not there (the message says where it was looked for and where it can be
            had), or
                its SHA-256 is another.
        """
        path = self.find(name, root)
        content = path.read_bytes()
        expected, found = self.sha256.get(path.name), hashlib.sha256(content).hexdigest()
        if found != expected:
            raise DataError(
                f"file {path} has SHA-256 {found}, expected {expected}: it is damaged or another version; "
                f"get it again from {self.origin}"
            )
        return gzip.decompress(content) if path.suffix == ".gz" else content

    def find(self, name: str, root: Any = None) -> Path:
        """Where the file is, or its unpacked form if that checksum is known. Raises DataError if absent."""
        names = [name, *([name[:-3]] if name.endswith(".gz") and name[:-3] in self.sha256 else [])]
        looked = [folder for base in roots(root) for folder in (base / self.folder, base)]
        for folder in looked:
            for candidate in names:
                if (folder / candidate).is_file():
                    return folder / candidate
        places = "".join(f"\n  {folder}" for folder in looked)
        raise DataError(
            f"file {name!r} of the data set {self.folder!r} is not in any of{places}\n"
            f"Get it from {self.origin}, put it into a folder {self.folder!r}, and give the folder above as "
            f"root=… or set it once: export INSITU_DATA=/path/to/that/folder"
        )


def roots(root: Any = None) -> list[Path]:
    """Where data sets are looked for: what is given, or INSITU_DATA, or the usual places."""
    if root is not None:
        return [Path(root).expanduser()]
    if os.environ.get("INSITU_DATA"):
        return [Path(os.environ["INSITU_DATA"]).expanduser()]
    return list(dict.fromkeys(base.parent / "shared" / "data" for base in (Path.cwd(), _PROJECT)))


def idx(content: bytes, name: str) -> np.ndarray:
    """An array out of the IDX format of the MNIST family, in this machine's byte order. Raises DataError.

    Two zero bytes, a type byte, the number of dimensions, each dimension as big-endian uint32, then the
    elements.
    """
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in kinds:
        raise DataError(f"file {name!r} begins with {content[:4]!r}, which is not IDX: get it again")
    kind, rank = np.dtype(kinds[content[2]]), content[3]
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", min(rank, (len(content) - 4) // 4), 4))
    start = 4 + 4 * rank
    if len(shape) != rank or len(content) - start != int(np.prod(shape)) * kind.itemsize:
        raise DataError(f"file {name!r} says shape {shape}, and has {len(content)} bytes: it is cut short")
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="), copy=False)
