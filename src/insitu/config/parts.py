"""From tables to the parts of a plan: names to classes, keys to their fields, each checked where it is said."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

from insitu.config import code, types
from insitu.config.place import Place
from insitu.core.errors import EngineError, PlanError
from insitu.core.optim import OPTIMIZERS, Optimizer
from insitu.core.part import Part
from insitu.core.schedules import SCHEDULES, Schedule
from insitu.names import find, members, nearest
from insitu.rounds.world import Always, Availability, Daily, Distribution, LogNormal, Measured, Spells, Trace

Finder = Callable[[str], Any]
"""From a name to a class; raises PlanError, with the nearest name, where there is none."""


class Key(NamedTuple):
    """What a table may say to one argument."""

    hint: Any
    required: bool


def make(said: Any, finder: Finder, place: Place) -> Any:
    """The part that ``"adam"`` or ``{ name = "adam", beta1 = 0.8 }`` describes.

    A name with a colon is the user's: ``fedfoo.py:FedFoo``.
    """
    name, settings = named(said, place)
    target = target_of(name, finder, place)
    return built(target, arguments(target, settings, place, name), place, name)


def of_class(target: type[Any], table: Mapping[str, Any], place: Place) -> Any:
    """The part of a table that can only be of one class, and so needs no name."""
    return built(target, arguments(target, table, place, "this table"), place, place.table)


def named(said: Any, place: Place) -> tuple[str, dict[str, Any]]:
    """The name, and the other keys."""
    table = {"name": said} if isinstance(said, str) else said
    if not isinstance(table, dict):
        raise place.error("expected a name, or a table with one")
    if "name" not in table:
        raise place.error('the key name is missing: give name = "…"')
    if not isinstance(table["name"], str):
        raise place.wrong("name", table["name"], "expected text")
    return table["name"], {key: value for key, value in table.items() if key != "name"}


def target_of(name: str, finder: Finder, place: Place) -> Any:
    """The class of a name, the user's or ours."""
    if not code.is_reference(name):
        try:
            return finder(name)
        except PlanError as error:
            raise place.error(str(error)) from error
    target = code.resolve(name, place, "name")
    if not callable(target):
        raise place.wrong("name", name, f"it is a {type(target).__name__}, expected a class")
    return target


def built(target: Any, given: Mapping[str, Any], place: Place, name: str, key: str = "name") -> Any:
    """The part made with these arguments; what it refuses is said with its place, and ``key``, which names it."""
    try:
        return code.call(lambda: target(**given), name, place, key)
    except (PlanError, EngineError) as error:
        raise place.error(str(error)) from error


def arguments(
    target: Any, table: Mapping[str, Any], place: Place, name: str, skip: Collection[str] = ()
) -> dict[str, Any]:
    """The table as arguments of a class or function, every key known, every value of its type."""
    known, any_key = keys(target, skip)
    for key in table:
        if key not in known and not any_key:
            hint = nearest(key, list(known)) if known else ", nor any other"
            raise place.error(f"{name} has no key {key!r}{hint}")
    missing = [key for key, one in known.items() if one.required and key not in table]
    if missing:
        expected = types.words(types.sayable(known[missing[0]].hint))
        raise place.error(f"{name} needs the key {missing[0]!r} ({expected})")
    return {key: fit(value, known[key].hint if key in known else Any, place, key) for key, value in table.items()}


def keys(target: Any, skip: Collection[str] = ()) -> tuple[dict[str, Key], bool]:
    """The arguments of a class or function, and whether it takes others as well."""
    hints = _hints(target)
    known, any_key = {}, False
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        return {}, True  # written in C, and does not tell
    for key, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            any_key = any_key or parameter.kind is parameter.VAR_KEYWORD
        elif key not in skip:
            known[key] = Key(hints.get(key, Any), parameter.default is parameter.empty)
    return known, any_key


def _hints(target: Any) -> dict[str, Any]:
    # A dataclass's own __init__ has annotations as text that only the class which wrote them can read.
    is_class = inspect.isclass(target)
    source = target.__init__ if is_class and not dataclasses.is_dataclass(target) else target
    try:
        return typing.get_type_hints(source)
    except (NameError, TypeError):
        return {}  # the user's annotations may be anything; then only the names are checked


def fit(value: Any, hint: Any, place: Place, key: str) -> Any:
    """The value as the annotation wants it: an optimiser or schedule made, code found, plain values checked."""
    alternatives = types.members(hint)
    for base, finder in _NESTED.items():
        if base not in alternatives or not isinstance(value, (str, dict)):
            continue
        if isinstance(value, dict) or str not in alternatives or code.is_reference(value):
            return make(value, finder, place.at(key))
        target_of(value, finder, place.at(key))  # the name stays as it is, once it is known to be one
    if isinstance(value, str) and Path in alternatives:
        return place.path(value)
    if types.takes_objects(hint) and (found := _referred(value, place, key)) is not value:
        return found
    return types.check(value, hint, place, key)


def _referred(value: Any, place: Place, key: str) -> Any:
    """The value with every ``module:object`` in it replaced by the object; the very value where there is none."""
    if code.is_reference(value):
        return code.resolve(value, place, key)
    if isinstance(value, list) and any(code.is_reference(one) for one in value):
        return [_referred(one, place, key) for one in value]
    return value


def in_family(family: str) -> Finder:
    """Finds the members of a folder."""
    return lambda name: find(family, name)


def one_of(known: Mapping[str, type[Any]], what: str) -> Finder:
    """Finds what is listed."""

    def finder(name: str) -> Any:
        if name not in known:
            raise PlanError(f"there is no {what} {name!r}{nearest(name, list(known))}")
        return known[name]

    return finder


def stage(name: str) -> Any:
    """Finds stages, in whichever folder they are."""
    folders = [f for f in ("privacy", "compress") if util.find_spec(f"insitu.{f}") is not None]
    for folder in folders:
        if name in members(folder):
            return find(folder, name)
    known = [name for folder in folders for name in members(folder)]
    raise PlanError(f"there is no stage {name!r}{nearest(name, known)}")


def reduce(name: str) -> Any:
    """Finds reduces; the default one, the mean, lives in the core."""
    from insitu.core.mean import Mean

    return Mean if name == Mean.part_name() else find("reduce", name)


def cohort(name: str) -> Any:
    """Finds cohorts."""
    from insitu.rounds import cohort as room

    parts = [c for c in vars(room).values() if inspect.isclass(c) and issubclass(c, Part) and c is not Part]
    return one_of({c.part_name(): c for c in parts}, "cohort")(name)


_NESTED: dict[type[Any], Finder] = {
    Optimizer: one_of(OPTIMIZERS, "optimizer"),
    Schedule: one_of(SCHEDULES, "schedule"),
    Distribution: one_of({c.part_name(): c for c in (LogNormal, Measured)}, "distribution"),
    Availability: one_of({c.part_name(): c for c in (Always, Daily, Spells, Trace)}, "availability"),
}
"""Parts that are arguments of other parts."""
