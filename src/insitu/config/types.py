"""Does a value fit an annotation? pydantic judges, strictly; what was expected is said in plain words."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError

from insitu.config.place import Place

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    timedelta: 'a duration (seconds, or "hh:mm:ss")',
    Any: "a value",
}
_LISTS = (Sequence, list, tuple)
_TABLES = (Mapping, dict)


def check(value: Any, hint: Any, place: Place, key: str) -> Any:
    """The value in the type of the annotation: a list may become a tuple, a whole number a float, no more.

    Only what a configuration can say counts of the annotation: of ``str | Callable`` the text.
    """
    said = sayable(hint)
    if any(isinstance(one, type) and one not in _WORDS and isinstance(value, one) for one in members(hint)):
        return value  # TOML's own dates and times, for instance
    try:
        # By way of JSON, for which pydantic has the rules that TOML needs: its lists are tuples too.
        return _adapter(said).validate_json(json.dumps(value))
    except (ValidationError, TypeError) as error:
        raise place.wrong(key, value, f"expected {words(said or hint)}") from error


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one annotation."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def sayable(hint: Any) -> Any:
    """The annotation without live objects, or None where nothing is left of it."""
    kept = [one for one in map(_one_sayable, members(hint)) if one is not None]
    return Union[tuple(kept)] if kept else None  # noqa: UP007 - a union of what is only known now


def takes_objects(hint: Any) -> bool:
    """Whether there is something in the annotation that only code can give."""
    return any(
        _one_sayable(one) is None or (get_origin(one) in _LISTS and any(map(takes_objects, get_args(one))))
        for one in members(hint)
        if one is not Ellipsis
    )


def _one_sayable(hint: Any) -> Any:
    origin = get_origin(hint)
    if hint in _WORDS or hint is NoneType or origin is Literal or hint in _LISTS or hint in _TABLES:
        return hint
    if origin in _LISTS:
        inner = [one if one is Ellipsis else sayable(one) for one in get_args(hint)]
        return None if None in inner else origin[tuple(inner)]
    return hint if origin in _TABLES else None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    lax = [Annotated[timedelta, Strict(False)] if one is timedelta else one for one in members(hint)]
    return TypeAdapter(Union[tuple(lax)], config=ConfigDict(strict=True))  # noqa: UP007 - as above


def words(hint: Any) -> str:
    """The annotation in words: ``a whole number``, ``"examples" or "uniform"``."""
    said = [_one_in_words(one) for one in members(hint) if one is not NoneType]
    return " or ".join(dict.fromkeys(said)) or "nothing"


def _one_in_words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(json.dumps(option) for option in get_args(hint))
    if origin in _LISTS or hint in _LISTS:
        inner = [one for one in get_args(hint) if one is not Ellipsis]
        return f"a list, each {words(inner[0])}" if inner else "a list"
    if origin in _TABLES or hint in _TABLES:
        return "a table"
    if origin is Callable:
        return 'code, such as "model.py:Net"'
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
