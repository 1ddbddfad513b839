"""Data sets by name, as configuration files ask for them.

No list is kept: a data set is a file of this folder with a function of the same name and a ``FILES``, or one
of ``bundled.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from insitu.core.errors import PlanError
from insitu.data import bundled
from insitu.data.dataset import DataSet


def names() -> list[str]:
    """The names that :func:`load` knows, sorted."""
    files = (path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
    return sorted([*bundled.__all__, *(name for name in files if _in_own_file(name))])


def reader(name: str) -> Callable[..., DataSet]:
    """The function that reads this data set. Raises PlanError, with the nearest name, where there is none."""
    known = names()
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise PlanError(f"there is no data set {name!r}: {hint}")
    module = bundled if name in bundled.__all__ else import_module(f"insitu.data.{name}")
    return getattr(module, name)


def load(name: str, **options: Any) -> DataSet:
    """The data set of this name, read with these options: ``load("mnist", shape="channel")``.

    Raises:
        PlanError: there is no such data set, or it has no such option.
        DataError: its files are absent or damaged.
    """
    function = reader(name)
    allowed = list(inspect.signature(function).parameters)
    for option in options:
        if option not in allowed:
            raise PlanError(f"data set {name!r} has no option {option!r}: it has {', '.join(allowed)}")
    return function(**options)


def _in_own_file(name: str) -> bool:
    # Read as text first: importing a file to learn that it is no reader would load this whole folder.
    if "\nFILES = " not in (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"):
        return False
    return hasattr(import_module(f"insitu.data.{name}"), name)
