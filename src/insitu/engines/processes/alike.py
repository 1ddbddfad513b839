"""Objects of one class as columns: fifty tasks cost a pickle and a call each, their fields as lists next to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Alike(Generic[T]):
    """Instances of a dataclass: fields that are one object in all of them once, the others as lists."""

    kind: type[T]
    count: int
    same: Mapping[str, Any]
    each: Mapping[str, Sequence[Any]]

    def apart(self, **others: Any) -> list[T]:
        """The objects again, with other values of the fields that are named."""
        same = {**self.same, **others}
        each = {name: values for name, values in self.each.items() if name not in others}
        return [
            self.kind(**same, **dict(zip(each, values, strict=True)))
            for values in (zip(*each.values(), strict=True) if each else [()] * self.count)
        ]


def alike(objects: Sequence[T], **others: Any) -> Alike[T]:
    """One object or more (none is an IndexError) as columns, with other values of the fields that are named."""
    first = vars(objects[0])
    same, each = dict(others), {}
    for name in first.keys() - others.keys():
        values = [vars(one)[name] for one in objects]
        if all(value is values[0] for value in values):
            same[name] = values[0]
        else:
            each[name] = values
    return Alike(type(objects[0]), len(objects), same, each)
