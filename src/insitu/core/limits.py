"""How much memory this process may have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux keeps control groups, and which of them this process is in."""


def allowed_memory() -> int:
    """Bytes: the machine's memory, or the least that a control group leaves this process, its own or one above it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limits():
        try:
            limits.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit: another kind of system, or "max"
            continue
    return min(limits)


def _limits() -> Iterator[Path]:
    """Files that hold a limit, of either version of control groups; a container sees its own at the root."""
    yield GROUPS / "memory.max"
    yield GROUPS / "memory" / "memory.limit_in_bytes"
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root, file = (GROUPS, "memory.max") if number == "0" else (GROUPS / "memory", "memory.limit_in_bytes")
        at = PurePosixPath(name.lstrip("/"))
        yield from (root / part / file for part in (at, *at.parents))
