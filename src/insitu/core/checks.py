"""Checks of arguments: each names the argument, its value and what was expected, and returns the value.

Used as ``positive(lr=lr)``, so that the message can say ``Expected lr=-1 > 0``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from numbers import Real
from typing import Any

from insitu.core.errors import PlanError


def _one(named: dict[str, Any]) -> tuple[str, Any]:
    ((name, value),) = named.items()
    return name, value


def number(**named: Any) -> float:
    """A finite real number."""
    name, value = _one(named)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise PlanError(f"Expected {name}={value!r} to be a finite number")
    return value  # type: ignore[return-value]  # a NumPy number is one, and stays what it is


def positive(**named: Any) -> float:
    """A finite number above zero."""
    name, value = _one(named)[0], number(**named)
    if value <= 0:
        raise PlanError(f"Expected {name}={value!r} > 0")
    return value


def not_negative(**named: Any) -> float:
    """A finite number, zero or above."""
    name, value = _one(named)[0], number(**named)
    if value < 0:
        raise PlanError(f"Expected {name}={value!r} >= 0")
    return value


def probability(**named: Any) -> float:
    """A number from 0 to 1, both included."""
    name, value = _one(named)[0], number(**named)
    if not 0 <= value <= 1:
        raise PlanError(f"Expected 0 <= {name}={value!r} <= 1")
    return value


def share(**named: Any) -> float:
    """A number above 0, at most 1."""
    name, value = _one(named)[0], number(**named)
    if not 0 < value <= 1:
        raise PlanError(f"Expected 0 < {name}={value!r} <= 1")
    return value


def count(**named: Any) -> int:
    """A whole number above zero."""
    name, value = _one(named)
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise PlanError(f"Expected {name}={value!r} to be a whole number >= 1")
    return int(value)


def one_of(options: Collection[Any], **named: Any) -> Any:
    """A value out of a short list."""
    name, value = _one(named)
    if value not in options:
        raise PlanError(f"Expected {name}={value!r} to be one of {', '.join(map(repr, options))}")
    return value


_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}


def size(**named: Any) -> int:
    """Bytes: a whole number >= 0, or text with a unit, such as ``"512MB"`` or ``"1.5 GiB"``."""
    name, value = _one(named)
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b|)\s*", value.lower())
        if found and found[2] in _UNITS:
            return int(float(found[1]) * _UNITS[found[2]])
    elif not isinstance(value, bool) and hasattr(value, "__index__") and int(value) >= 0:
        return int(value)
    raise PlanError(f'Expected {name}={value!r} to be bytes, a whole number >= 0 or text such as "512MB" or "1.5 GiB"')
