"""Clients: all places with data, as every engine takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core import tree
from insitu.core.errors import DataError
from insitu.core.types import Client, Data, Schema
from insitu.data.arguments import are_continuous, as_labels
from insitu.data.eager import Eager
from insitu.data.holdout import Holdout
from insitu.data.ids import Ids
from insitu.data.lazy import Lazy
from insitu.data.mapped import opened
from insitu.data.partition.by_key import by_key
from insitu.data.prefetch import Prefetch
from insitu.data.summary import Summary, tabulate


class Clients:
    """All clients that there are, by their place 0 … n-1 (a ``Population``).

    Made by :meth:`from_arrays` (a partition of one data set), :meth:`by_key` (one client a distinct key) or
    :meth:`lazy` (each loaded when asked for). Plain data: it can be pickled and sent to worker processes.

    ``clients[3]`` is the client at place 3, ``clients["cleveland"]`` the one of that id; iterating loads one
    client after another.
    """

    def __init__(self, source: Eager | Lazy, *, prefetch: bool = False) -> None:
        self._source = source
        ahead = prefetch or (isinstance(source, Eager) and source.out_of_core)
        self._prefetch = None
        if ahead:
            threads = source.readers
            # Several threads keep the disk busy by themselves: nothing needs to be named to it.
            self._prefetch = Prefetch(source.at, soon=source.soon if threads == 1 else None, threads=threads)

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any = None,
        parts: Sequence[Any] | None = None,
        *,
        holdout: float = 0.0,
        ids: Sequence[Any] | None = None,
        schema: Schema | None = None,
        seed: int = 0,
    ) -> Clients:
        """Clients that each have some rows of one data set.

        The arrays are kept, not copied; a client's rows are taken when it is asked for (a view of them where
        they follow each other), so change the arrays afterwards only if you mean to change the clients. A memory
        map (``numpy.memmap``, ``numpy.load(…, mmap_mode="r")``) stays in its file: see :meth:`from_npy`.

        Args:
            x: examples: an array [n, …], a dict of such arrays, a pandas DataFrame or a torch tensor;
                numbers, finite.
            y: labels [n, …], finite numbers or text, or None.
            parts: for each client its row numbers (or a mask [n]), as :mod:`insitu.data.partition` makes
                them; no row twice; rows in no part are nobody's. None: one client with all rows.
            holdout: the fraction of each client's examples that is held out for evaluation, in [0, 1); of two
                examples or more at least one is held out and one kept.
            ids: one id a client; ``"0", "1", …`` by default.
            schema: the classes that there are, where some may occur in no example here; or those that do.
            seed: which examples are held out is a function of it and the client's id.

        Raises:
            DataError: unequal lengths, NaN or Inf (named by client, column and row), an empty part, a row out
            of
                range or in two parts, equal ids.
            PlanError: holdout or seed is out of range.
        """
        parts = None if parts is None else list(parts)
        clients = 1 if parts is None else len(parts)
        if not clients:
            raise DataError("parts is empty: there must be at least one client")
        names = Ids(range(clients) if ids is None else ids)
        if len(names) != clients:
            raise DataError(f"ids has {len(names)} ids and parts has {clients} parts: give one id a client")
        return cls(Eager(x, y, parts, names, Holdout(holdout, seed), schema))

    @classmethod
    def from_npy(cls, x: Any, y: Any = None, parts: Sequence[Any] | None = None, **options: Any) -> Clients:
        """Clients that each have some rows of arrays in ``.npy`` files, which may be larger than memory.

        A client's rows are read, and checked for NaN and Inf, when it is asked for; worker processes read for
        themselves. The same as :meth:`from_arrays` with ``numpy.load(x, mmap_mode="r")``. Rows that follow each
        other are read fastest: store the data sorted by client.

        Args:
            x: the path of the examples [n, …], or a dict of paths.
            y: the path of the labels [n, …]; labels in memory; or None.
            parts, options: as in :meth:`from_arrays`.

        Raises:
            DataError: as in :meth:`from_arrays`, and where a file is not a ``.npy`` file of numbers.
        """
        arrays = tree.map(lambda path: opened(path, "x"), x)
        labels = opened(y, "y") if isinstance(y, (str, Path)) else y
        return cls.from_arrays(arrays, labels, parts, **options)

    @classmethod
    def from_parquet(
        cls,
        path: str | Path,
        by: str,
        label: str | None = None,
        *,
        features: Sequence[str] | None = None,
        holdout: float = 0.0,
        schema: Schema | None = None,
        seed: int = 0,
    ) -> Clients:
        """One client a distinct key in a Parquet file, which may be larger than memory. Needs ``insitu[parquet]``.

        The columns ``by``, ``label`` and those of text are read once at the start, the others by client, a row
        group at a time: write the file sorted by client, with row groups of some clients' size. Columns of text
        become one column of 0 and 1 for each of their values.

        Args:
            path: the file.
            by: the column of keys: whole numbers or text. A client's id is ``str(key)``, in sorted order.
            label: the column of labels.
            features: the columns to learn from: numbers, lists of numbers of one length, or text. All others
                than ``by`` and ``label`` by default.
            holdout, schema, seed: as in :meth:`from_arrays`.

        Raises:
            DataError: no such file or column, a column of another type, missing keys or labels; later, with the
                client's name, a missing or infinite value.
        """
        from insitu.data.parquet import Parquet

        rows = Parquet(path, by, label, features)
        schema = rows.schema() if schema is None else schema
        return cls(Lazy(Ids(rows.keys), rows, rows.sizes, Holdout(holdout, seed), schema), prefetch=True)

    @classmethod
    def by_key(
        cls, x: Any, y: Any, keys: Any, *, holdout: float = 0.0, schema: Schema | None = None, seed: int = 0
    ) -> Clients:
        """One client a distinct key, its id ``str(key)``, in the order of the sorted keys.

        Args:
            x, y, holdout, schema, seed: as in :meth:`from_arrays`.
            keys: one key an example, [n]: hospital, person, writer, …

        Raises:
            DataError: as in :meth:`from_arrays`; also where keys are missing or not [n].
        """
        parts = by_key(keys)
        values = as_labels(keys, "keys")
        shape = np.shape(tree.first_leaf(x))
        if shape and shape[0] != len(values):
            raise DataError(f"x has {shape[0]} examples and keys has {len(values)}: give one key an example")
        ids = [values[part[0]] for part in parts]
        return cls.from_arrays(x, y, parts, holdout=holdout, ids=ids, schema=schema, seed=seed)

    @classmethod
    def lazy(
        cls,
        ids: Sequence[Any],
        load: Callable[[Any], Any],
        sizes: Sequence[int] | None = None,
        *,
        holdout: float = 0.0,
        schema: Schema | None = None,
        seed: int = 0,
        timeout: float | None = None,
        prefetch: bool = False,
    ) -> Clients:
        """Clients that are loaded each time they are asked for, and not kept.

        With ``ids=range(1_000_000)`` nothing of that size is made. Where loading is slow and there is memory,
        wrap ``load`` in ``functools.lru_cache``.

        Args:
            ids: any sequence; a client's id is the text of its element.
            load: ``load(ids[place])`` returns (x, y), :class:`Data` or :class:`Client`. Worker processes call
                it too.
            sizes: the number of examples that ``load`` will return by client, where known: cohorts drawn by
                size need it, and it is checked on loading.
            holdout, seed: as in :meth:`from_arrays`; or let ``load`` return clients with a holdout of their
                own.
            schema: the shape of an example and the classes, for learners that have to know them; without it
                only the shape is known, from the first client.
            timeout: seconds that ``load`` may take for a client; None: as long as it likes. With it ``load`` is
                called in another thread, always the same one until it is late. Whoever is late is counted as
                failed; since that depends on the clock, a run may then not be repeatable.
            prefetch: load the next clients of a round in another thread while the present ones are at work. It
                pays where ``load`` waits (for a disk, a network); ``load`` must then bear being called by two
                threads at a time.

        A client whose ``load`` raises, takes longer than ``timeout``, or returns something empty, or of another
        shape or dtype than the first client's, is counted as failed in that round, by name; the others go on.

        Raises:
            DataError: ids are not a sequence or not distinct, or sizes are not one a client; later, with the
                client's name, what ``load`` returned cannot be learnt from.
            PlanError: load, holdout, seed or schema is not what is expected.
        """
        return cls(Lazy(Ids(ids), load, sizes, Holdout(holdout, seed), schema, timeout), prefetch=prefetch)

    @property
    def ids(self) -> Sequence[str]:
        """All ids, by place."""
        return self._source.ids

    def __len__(self) -> int:
        return len(self._source)

    def id_at(self, place: int) -> str:
        """The id of the client at this place, without loading it."""
        return self._source.ids[self._place(place)]

    def at(self, place: int) -> Client:
        """The client at this place, loaded."""
        place = self._place(place)
        return self._source.at(place) if self._prefetch is None else self._prefetch.at(place)

    def ahead(self, places: Iterable[int]) -> None:
        """Says who will be asked for, in this order: where data are read, the next are read while these are used.

        Nothing is read before the first of them is asked for. The last call holds; an empty one ends it.
        """
        if self._prefetch is not None:
            self._prefetch.announce(places)

    def size_at(self, place: int) -> int | None:
        """How many examples it learns from, or None where that is not known without loading it."""
        return self._source.size_at(self._place(place))

    def place_of(self, client: str) -> int:
        """The place of the client with this id. Raises DataError, naming the nearest, for an unknown one."""
        return self._source.ids.index(client)

    def whole(self) -> Data | None:
        """All rows in memory, of which ``client.data.rows`` are a client's own; None for files and lazy clients."""
        return self._source.whole() if isinstance(self._source, Eager) else None

    def has_holdout(self) -> bool:
        """Whether clients hold examples out for evaluation."""
        return self._source.has_holdout()

    def schema(self) -> Schema:
        """What is known of the data without loading more than one client."""
        return self._source.schema

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self._source, "prefetch": self._prefetch is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Clients.__init__(self, **state)

    def __iter__(self) -> Iterator[Client]:
        return (self._source.at(place) for place in range(len(self)))

    def __getitem__(self, key: int | str) -> Client:
        return self.at(self.place_of(key) if isinstance(key, str) else key)

    def __contains__(self, client: object) -> bool:
        return client in self._source.ids

    def pooled(self, *, holdout: bool = False) -> Data:
        """All clients' training examples (or, ``holdout=True``, those held out) together: for baselines.

        In the order of the rows; for lazy clients client after client, all of them loaded.

        Raises:
            DataError: ``holdout=True``, and no client holds any out.
        """
        data = self._source.pooled(holdout)
        if data is None:
            raise DataError("no client holds examples out: make the clients with holdout=0.2, for example")
        return data

    def describe(self) -> Summary:
        """Sizes and label counts of the training examples by client; lazy clients are loaded one by one."""
        sizes = np.zeros(len(self), dtype=np.int64)
        found: list[np.ndarray] = []
        for place, client in enumerate(self):
            sizes[place] = len(client.data)
            if _are_classes(client.data.y):
                found.append(client.data.y)
        if len(found) < len(self):
            return Summary(self.ids, sizes)
        owners = np.repeat(np.arange(len(self)), sizes)
        return Summary(self.ids, sizes, *tabulate(owners, np.concatenate(found), len(self)))

    def plot(self, path: str | Path | None = None) -> Any:
        """A picture of :meth:`describe`: a bar a client, a colour a class. Returns the path or figure."""
        from insitu.data.picture import summary_picture

        return summary_picture(self.describe(), path)

    def __repr__(self) -> str:
        fraction = self._source.holdout.fraction
        parts = [f"{len(self):,} clients"]
        if isinstance(self._source, Eager):
            parts += [f"{self._source.examples:,} examples", *_columns(self._source)]
        else:
            parts.append("loaded when asked for")
        return f"Clients({', '.join(parts)}{f', holdout {fraction:g}' if fraction else ''})"

    def _place(self, place: int) -> int:
        """The place, checked. Raises IndexError, as sequences do."""
        if type(place) is int and 0 <= place < len(self._source):
            return place
        if isinstance(place, bool) or not hasattr(place, "__index__"):
            raise TypeError(f"place={place!r} is a {type(place).__name__}: expected a whole number")
        if not 0 <= place < len(self):
            raise IndexError(f"place={place}: there are the places 0 to {len(self) - 1}")
        return int(place)


def _are_classes(y: np.ndarray | None) -> bool:
    return y is not None and y.ndim == 1 and not are_continuous(y)


def _columns(source: Eager) -> list[str]:
    x = source.x
    texts = [f"x {{{', '.join(x)}}}" if isinstance(x, dict) else f"x {x.dtype} {list(x.shape[1:])}"]
    if source.y is not None:
        classes = source.schema.classes
        texts.append(f"y {source.y.dtype}" + ("" if classes is None else f" of {len(classes)} classes"))
    return texts
