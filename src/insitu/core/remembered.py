"""What was measured once about a model on a machine, kept in a file between runs.

A cache and nothing more: where the file is missing, damaged or cannot be written, things are measured again.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from insitu.version import __version__

MOST = 500
"""Entries in the file; the oldest leave."""


def place() -> Path:
    """The file: ``insitu/choices.json`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "insitu" / "choices.json"


def key(**about: Any) -> str:
    """A name for what was measured: the same for the same things on the same machine with the same versions."""
    about |= {"insitu": __version__, "machine": machine(), "cores": os.cpu_count()}
    return sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]


def machine() -> str:
    """The processor, by the name it gives itself."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{platform.machine()} {platform.processor()}"


def recall(name: str) -> dict[str, Any] | None:
    """What is remembered under this name."""
    found = _read().get(name)
    return found if isinstance(found, dict) else None


def remember(name: str, value: dict[str, Any]) -> None:
    """Keeps a value, for other runs to find. Writers do not wait for each other: the last one wins, whole."""
    held = _read()
    held.pop(name, None)
    held[name] = value
    text = json.dumps(dict(list(held.items())[-MOST:]), indent=1)
    with contextlib.suppress(OSError):
        folder = place().parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=folder, suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(made, place())


def _read() -> dict[str, Any]:
    try:
        held = json.loads(place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
