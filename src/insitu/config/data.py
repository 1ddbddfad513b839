"""The table ``[data]``: a source and a partition become clients and a test set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from insitu.config import parts
from insitu.config.place import Place
from insitu.core import checks, seeds, tree
from insitu.core.errors import DataError, PlanError
from insitu.core.types import Data, Population, Schema
from insitu.data import Clients, DataSet, columns, sets
from insitu.names import members, nearest

NATURAL = "natural"


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """Where examples come from and who has them.

    source     a reader of :mod:`insitu.data.sets`, with options as a table: ``{ name = "mnist", shape = "channel" }``;
               or the user's function, ``data.py:load``, with its arguments, which returns (x, y), a DataSet or Clients
    partition  a member of :mod:`insitu.data.partition`, ``{ name = "dirichlet", clients = 100, alpha = 0.3 }``, or
               ``natural``: one client a distinct key; the default where the source has keys
    holdout    the fraction of its examples that each client holds out
    test       the fraction that is taken away as a central test set, before the partition, each class alike
    seed       of holdout and test set; a partition has a seed of its own
    """

    source: str | dict[str, Any]
    partition: str | dict[str, Any] | None = None
    holdout: float = 0.0
    test: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """What a source gave, whatever its form."""

    x: Any
    y: np.ndarray | None
    schema: Schema
    keys: np.ndarray | None = None
    test: Data | None = None

    def __len__(self) -> int:
        return len(tree.first_leaf(self.x))


def population(table: DataTable, place: Place) -> tuple[Population, Data | None]:
    """The clients, and the central test set where there is one."""
    found = read(table.source, place.at("source"))
    if not isinstance(found, Examples):
        _refuse_for_clients(table, place)
        return found, None
    try:
        if table.test is not None:
            found = _split(found, table.test, table.seed, place)
        return _clients(found, table, place), found.test
    except PlanError as error:
        raise place.error(str(error)) from error


def read(source: Any, place: Place) -> Any:
    """What a source gives: :class:`Examples`, or clients that are made already."""
    name, options = parts.named(source, place)
    function = parts.target_of(name, sets.reader, place)
    given = parts.arguments(function, options, place, name)
    if isinstance(given.get("root"), str):
        given["root"] = place.path(given["root"])
    found = parts.built(function, given, place, name)
    if isinstance(found, DataSet):
        return _of_data_set(found)
    if isinstance(found, tuple) and len(found) == 2:
        x, y = columns.as_x(found[0]), columns.tidy_labels(columns.as_y(found[1]))
        return Examples(x, y, _schema(x, y))
    if hasattr(found, "at"):
        return found
    raise place.error(f"{name} returned {type(found).__name__}: return (x, y), a DataSet or Clients")


def _of_data_set(found: DataSet) -> Examples:
    # All classes that there are: a rare one may occur in the test part only.
    schema = Schema(found.x.shape[1:], np.arange(len(found.classes))) if found.classes else _schema(found.x, found.y)
    test = None if found.x_test is None else Data(found.x_test, found.y_test)
    return Examples(found.x, found.y, schema, found.keys, test)


def _schema(x: Any, y: np.ndarray | None) -> Schema:
    classes = np.unique(y) if y is not None and y.dtype.kind in "biuUS" else None
    return Schema(None if isinstance(x, dict) else x.shape[1:], classes)


def _refuse_for_clients(table: DataTable, place: Place) -> None:
    for key, given in (("partition", table.partition), ("test", table.test), ("holdout", table.holdout or None)):
        if given is not None:
            cure = "leave it out, or let the function return (x, y) or a DataSet"
            raise place.wrong(key, given, f"the source gives clients, which are made already: {cure}")


def _split(found: Examples, fraction: float, seed: int, place: Place) -> Examples:
    """The examples without a test set, and that. Classes are split one by one, so that each keeps its share."""
    if found.test is not None:
        raise place.wrong("test", fraction, "the source has a test set of its own: leave it out")
    if not 0 < checks.number(test=fraction) < 1:
        raise place.wrong("test", fraction, "expected a fraction between 0 and 1")
    n, classes = len(found), found.schema.classes
    codes = np.zeros(n, dtype=np.int64)
    if classes is not None and found.y is not None and found.y.ndim == 1:
        codes = np.searchsorted(classes, found.y)
    order = seeds.generator(seed, 0, "", "test set").permutation(n)
    of_class = [order[codes[order] == one] for one in np.unique(codes)]
    test = np.sort(np.concatenate([rows[: int(fraction * len(rows) + 0.5)] for rows in of_class]))
    if not 0 < len(test) < n:
        raise place.wrong("test", fraction, f"that is {len(test)} of {n} examples: take another fraction, or more data")
    everything, train = Data(found.x, found.y), np.setdiff1d(np.arange(n), test)
    kept, keys = everything.take(train), None if found.keys is None else found.keys[train]
    return Examples(kept.x, kept.y, found.schema, keys, everything.take(test))


def _clients(found: Examples, table: DataTable, place: Place) -> Clients:
    said, place = table.partition, place.at("partition")
    if said is None and found.keys is None:
        cure = 'partition = { name = "iid", clients = 10 }'
        raise place.error(f"the source does not say who has which example: give a partition such as {cure}")
    name, settings = parts.named(NATURAL if said is None else said, place)
    options: dict[str, Any] = {"holdout": table.holdout, "schema": found.schema, "seed": table.seed}
    if name != NATURAL:
        return Clients.from_arrays(found.x, found.y, _parts(found, name, settings, place), **options)
    if settings:
        raise place.error(f"{NATURAL!r} has no keys: leave {', '.join(settings)} out")
    if found.keys is None:
        raise place.error('the source has no natural clients: give partition = { name = "iid", clients = 10 }')
    return Clients.by_key(found.x, found.y, found.keys, **options)


def _parts(found: Examples, name: str, settings: dict[str, Any], place: Place) -> Any:
    function = parts.target_of(name, _partition, place)
    first = next(iter(parts.keys(function)[0]))
    given = parts.arguments(function, settings, place, name, skip=(first,))
    # A partition that only counts examples takes labels of any shape, such as the letters of a window.
    counted = found.y is None or found.y.ndim > 1
    labels = len(found) if counted and first == "labels_or_n" else found.y
    try:
        return parts.built(lambda **others: function(labels, **others), given, place, name)
    except DataError as error:
        raise place.error(str(error)) from error


def partitions() -> list[str]:
    """The names that a partition may have."""
    return sorted([NATURAL, *(name for name in members("data.partition") if name != "by_key")])


def _partition(name: str) -> Callable[..., Any]:
    if name not in partitions():
        raise PlanError(f"there is no partition {name!r}{nearest(name, partitions())}")
    return getattr(import_module(f"insitu.data.partition.{name}"), name)  # type: ignore[no-any-return]
