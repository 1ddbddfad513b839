"""Part: what everything that a plan is made of has in common: a name and a ``config()``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any


class Part:
    """A frozen dataclass that can say what it is, as plain data.

    ``config()`` is what the run's record and the plan's digest hold. Its ``name`` is the one that configuration
    files use; by default the name of the module, since a family's member is one file.
    """

    @classmethod
    def part_name(cls) -> str:
        """The name by which configuration files call this class."""
        return cls.__module__.rpartition(".")[2]

    def config(self) -> dict[str, Any]:
        """This part as JSON-ready data: its name, then its fields."""
        fields = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.part_name(), **fields}


def plain(value: Any) -> Any:
    """``value`` as JSON-ready data; a live object becomes its ``module:name``."""
    if isinstance(value, Part):
        return value.config()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    kind = value if isinstance(value, type) or callable(value) else type(value)
    return f"{getattr(kind, '__module__', '?')}:{getattr(kind, '__qualname__', type(value).__qualname__)}"


def to_json(x: Any, *, ascii_only: bool = True) -> str:
    """JSON that every reader takes, SQLite's functions among them: what is not finite becomes null.

    NumPy and torch numbers become plain ones, arrays lists, and live objects their ``module:name``.
    """
    try:
        return json.dumps(x, allow_nan=False, default=plain, ensure_ascii=ascii_only)
    except (ValueError, TypeError):  # NaN or infinity somewhere, or a key that is no text: rare, so we walk
        return json.dumps(_clean(x), allow_nan=False, ensure_ascii=ascii_only)


def _clean(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(key): _clean(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_clean(value) for value in x]
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if x is None or isinstance(x, (bool, int, str)):
        return x
    return _clean(plain(x))
