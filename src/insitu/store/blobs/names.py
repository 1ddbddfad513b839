"""Names of files, made of digests alone: nothing that a stranger says becomes a path. And a full disk, told apart."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from insitu.core.errors import BlobError, DiskFull, StoreError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def checked(digest: str) -> str:
    """``digest`` where it is one. Raises BlobError for anything else."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise BlobError(
            f"{str(digest)[:80]!r} is no digest: give the 64 hexadecimal digits of a SHA-256, in small letters"
        )
    return digest


def of_owner(owner: str) -> str:
    """The folder of an owner's parts, whatever the owner is called."""
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def said(doing: str) -> Iterator[None]:
    """Turns an OSError into DiskFull or StoreError, saying what was being done."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(f"{doing}: {error.strerror}: free some space on its disk and try again") from error
        raise StoreError(f"{doing}: {error}: check the folder, its rights and its disk") from error
