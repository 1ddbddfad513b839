"""Files that are there as a whole or not at all, and private ones that nobody else could open at any moment."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from insitu.core.errors import ConfigError


def write(path: Path, data: bytes, mode: int = 0o644, replace: bool = True) -> None:
    """Writes a file with ``mode`` from its first byte on, and puts it in its place when it is on the disk.

    With ``replace=False`` raises ConfigError where the file is there already: a key is never overwritten unasked.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    try:
        try:
            os.fchmod(handle, mode)
            with open(handle, "wb", closefd=False) as file:
                file.write(data)
                file.flush()
            os.fsync(handle)
        finally:
            os.close(handle)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename, it fails where the name is taken
    except FileExistsError:
        raise ConfigError(f"{path} is there already: move it away first, or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_private(path: Path) -> None:
    """Raises ConfigError where others than the owner can read a key."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"the key {path} has the mode {mode:03o}, so others can read it: chmod 600 {path}")
