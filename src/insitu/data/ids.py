"""Clients' ids: text, whatever they were made from, without a list of them where a range says it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from insitu.core import arrays
from insitu.core.errors import DataError
from insitu.data.columns import as_array


class Ids(Sequence[str]):
    """``str(key)`` of each key of a sequence, made when asked for. Raises DataError where two are equal."""

    def __init__(self, keys: Sequence[Any]) -> None:
        if hasattr(keys, "to_numpy") or arrays.is_torch(keys):
            keys = as_array(keys, "ids")  # a Series counts by its index, and a tensor's elements are tensors
        if not hasattr(keys, "__getitem__") or isinstance(keys, (str, Mapping)):
            raise DataError(f"ids={keys!r:.60} is a {type(keys).__name__}: expected a sequence, such as list(…)")
        if len(keys) == 0:
            raise DataError("ids is empty: there must be at least one client")
        self.keys = keys
        # A range cannot repeat itself, and its ids are worked out: a million of them take no memory.
        if not isinstance(keys, range) and len(set(self)) != len(keys):
            twice = Counter(self).most_common(1)[0][0]
            raise DataError(f"client id {twice!r} occurs twice: give every client an id of its own")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Ids(self.keys[place]) if len(range(*place.indices(len(self)))) else ()
        return str(self.keys[place])

    def __iter__(self) -> Iterator[str]:
        return map(str, self.keys)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    def __hash__(self) -> int:
        return hash((len(self), self[0], self[-1]))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Ids({shown}{f', … {len(self):,} in all' if len(self) > 3 else ''})"

    def index(self, name: Any, *_: Any) -> int:
        """The place of an id. Raises DataError, naming the nearest ids, where there is none such."""
        place = self._find(name)
        if place is None:
            near = get_close_matches(str(name), map(str, self.keys[:10_000]), n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the ids are {self!r}"
            raise DataError(f"there is no client {name!r}: {hint}")
        return place

    def __getstate__(self) -> dict[str, Any]:
        return {"keys": self.keys}  # the table of places is made again where it is needed

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self)}

    def _find(self, name: str) -> int | None:
        if not isinstance(self.keys, range):
            return self._places.get(name)
        try:
            number = int(name)
        except ValueError:
            return None
        return self.keys.index(number) if number in self.keys and str(number) == name else None
