"""From a name to a class: ``algorithms/fedavg.py`` is found by its name. There is no registry."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from importlib import import_module, util
from typing import Any

from insitu.core.errors import MissingExtra, PlanError
from insitu.core.part import Part


def members(family: str) -> list[str]:
    """The names in a family, sorted: ``members("algorithms")`` → ``["fedavg", "fedprox", …]``."""
    package = import_module(f"insitu.{family}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(family: str, name: str) -> type[Any]:
    """The class that ``insitu/<family>/<name>.py`` is about. Raises PlanError with the nearest name."""
    if not name.isidentifier() or util.find_spec(f"insitu.{family}.{name}") is None:
        raise PlanError(f"{family} has no {name!r}{nearest(name, members(family))}")
    try:
        module = import_module(f"insitu.{family}.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("torch", "torch", f"{name!r} of {family}") from error
    own = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Part) and cls.part_name() == name and not inspect.isabstract(cls)
        and not cls.__name__.startswith("_")
    ]  # fmt: skip
    if len(own) != 1:
        raise PlanError(f"{module.__name__} should hold one class, and holds {[cls.__name__ for cls in own]}")
    return own[0]


def nearest(name: str, known: list[str]) -> str:
    """``: did you mean 'fedavg'?`` or the list of what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": there are {', '.join(known)}"
