"""Clients that are loaded when they are asked for: from files, a database or a synthetic generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from insitu.core import checks, tree
from insitu.core.errors import DataError, PlanError
from insitu.core.types import Client, Data, Schema
from insitu.data import columns
from insitu.data.deadline import Deadline
from insitu.data.holdout import Holdout
from insitu.data.ids import Ids

Form = dict[str, tuple[Any, tuple[int, ...]]]
"""Name → dtype or kind, and shape of one example."""

_KINDS = {"b": "bool", "i": "whole numbers", "u": "whole numbers", "f": "fractions", "U": "text", "S": "bytes"}
"""Kinds of labels."""


class Lazy:
    """Ids and a function that loads one of them. Nothing of the population's size is made here."""

    def __init__(
        self,
        ids: Ids,
        load: Callable[[Any], Any],
        sizes: Sequence[int] | None,
        holdout: Holdout,
        schema: Schema | None,
        timeout: float | None = None,
    ) -> None:
        if not callable(load):
            raise PlanError(f"Expected load={load!r:.60} to be a function of an id that returns (x, y)")
        if sizes is not None and len(sizes) != len(ids):
            raise DataError(f"sizes has {len(sizes)} numbers and ids has {len(ids)}: give one size a client")
        if schema is not None and not isinstance(schema, Schema):
            raise PlanError(f"Expected schema={schema!r:.60} to be a Schema(features, classes)")
        self.ids, self.holdout = ids, holdout
        self._load, self._sizes, self._schema = load, sizes, schema
        self._deadline = None if timeout is None else Deadline(checks.positive(timeout=timeout))
        self._form: Form | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def size_at(self, place: int) -> int | None:
        """How many examples the client learns from, where sizes were given."""
        if self._sizes is None:
            return None
        size = self._sizes[place]
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1:
            raise DataError(
                f"client {self.ids[place]!r}: its size is {columns.shown(size)}: expected a whole number >= 1"
            )
        return int(size) - self.holdout.count(int(size))

    def has_holdout(self) -> bool:
        """Whether a fraction is held out, or the first client comes with a holdout of its own."""
        return self.holdout.fraction > 0 or self._first[2]

    def at(self, place: int) -> Client:
        """The client, loaded, checked and split."""
        client = self._loaded(place)
        if client.holdout is not None:
            return client
        learn, held = self.holdout.split(len(client.data), client.id)
        if held is None:
            return client
        return Client(client.id, client.data.take(learn), client.data.take(held))

    @property
    def readers(self) -> int:
        """Threads that load ahead: one, as a loader was promised, unless it says that it bears more."""
        return int(getattr(self._load, "readers", 1))

    def soon(self, place: int) -> int:
        """The client will be asked for next: a loader with a method ``soon`` is told. Returns the client's bytes."""
        named = getattr(self._load, "soon", None)
        return int(named(self.ids.keys[place])) if named is not None else 0

    def pooled(self, holdout: bool) -> Data | None:
        """All clients' examples of one kind together, client after client; None where there are none."""
        clients = (self.at(place) for place in range(len(self)))
        found = [c.holdout if holdout else c.data for c in clients]
        kept = [data for data in found if data is not None]
        return _joined(kept) if kept else None

    @cached_property
    def schema(self) -> Schema:
        """What was given; else the shape of the first client's examples: its classes are not everyone's."""
        return self._schema if self._schema is not None else Schema(self._first[0], None)

    @cached_property
    def _first(self) -> tuple[tuple[int, ...] | None, bool, bool]:
        """Of the first client: the shape of an example, whether it has labels, whether it has a holdout."""
        client = self._loaded(0)
        x = client.data.x
        return (
            None if isinstance(x, dict) else x.shape[1:],
            client.data.y is not None,
            client.holdout is not None,
        )

    def _loaded(self, place: int) -> Client:
        name = self.ids[place]
        try:
            key = self.ids.keys[place]
            found = self._load(key) if self._deadline is None else self._deadline(self._load, key)
        except Exception as error:
            error.add_note(f"while loading client {name!r}")
            raise
        holdout = None
        if isinstance(found, Client):
            found, holdout = self._unpacked(found, name)
        if isinstance(found, tuple) and len(found) == 2:
            found = Data(*found)
        if not isinstance(found, Data):
            raise DataError(f"client {name!r}: load returned {type(found).__name__}: expected (x, y), Data or Client")
        client = Client(name, _checked(found, name), None if holdout is None else _checked(holdout, name))
        if self._sizes is not None and len(client.data) != self._sizes[place]:
            raise DataError(
                f"client {name!r}: load returned {len(client.data)} examples and sizes says "
                f"{self._sizes[place]}: correct one of them"
            )
        self._compare(client, place)
        return client

    def _compare(self, client: Client, place: int) -> None:
        """Raises DataError where the client's data have another form than the first one's, as far as that is known.

        It is once a run has begun, in worker processes too; nothing is loaded for it.
        """
        features = None if self._schema is None else self._schema.features
        for data in (client.data, client.holdout):
            if data is None:
                continue
            form = _form(data)
            if place == 0 and self._form is None:
                self._form = form
            if features is not None and not isinstance(data.x, dict) and data.x.shape[1:] != tuple(features):
                raise DataError(
                    f"client {client.id!r}: an example's x has shape {list(data.x.shape[1:])}, and the schema says"
                    f" {list(features)}: correct one of them"
                )
            if self._form is not None and form != self._form:
                raise DataError(
                    f"client {client.id!r}: load returned {_told(form)}, and for the first client, {self.ids[0]!r},"
                    f" {_told(self._form)}: let it return the same names, shapes and dtypes for all"
                )

    def _unpacked(self, client: Client, name: str) -> tuple[Data, Data | None]:
        if client.id != name:
            raise DataError(f"client {name!r}: load returned the client {client.id!r}: return the one asked for")
        if client.holdout is not None and self.holdout.fraction > 0:
            raise DataError(
                f"client {name!r}: load returned a holdout, and holdout={self.holdout.fraction} asks for "
                "another: leave one of them out"
            )
        return client.data, client.holdout


def _checked(data: Data, client: str) -> Data:
    """The data as NumPy arrays; raises DataError with the client's name for what cannot be learnt from."""
    try:
        names = columns.column_names(data.x)
        x, y = columns.as_x(data.x), columns.as_y(data.y)
        n = columns.length(x, y)
    except DataError as error:
        raise DataError(f"client {client!r}: {error}") from error
    columns.check_values(x, y, names, lambda rows: [client] * len(rows))
    if data.rows is not None and len(data.rows) != n:
        raise DataError(f"client {client!r}: it has {n} examples and {len(data.rows)} row numbers")
    return Data(x, columns.tidy_labels(y), None if data.rows is None else np.asarray(data.rows))


def _form(data: Data) -> Form:
    """What an example looks like; of labels the kind alone, since a client may lack the longest word."""
    form: Form = {f"x/{path}" if path else "x": (x.dtype, x.shape[1:]) for path, x in tree.leaves(data.x)}
    if data.y is not None:
        form["y"] = _KINDS[data.y.dtype.kind], data.y.shape[1:]
    return form


def _told(form: Form) -> str:
    return ", ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in sorted(form.items()))


def _joined(pieces: list[Data]) -> Data:
    def join(*parts: Any) -> np.ndarray:
        return np.concatenate(parts)

    labelled = all(piece.y is not None for piece in pieces)
    numbered = all(piece.rows is not None for piece in pieces)
    return Data(
        tree.map(join, *(piece.x for piece in pieces)),
        join(*(piece.y for piece in pieces)) if labelled else None,
        join(*(piece.rows for piece in pieces)) if numbered else None,
    )
