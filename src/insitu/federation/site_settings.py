"""``site.toml``: a site's data, and what it allows. Only its administrator writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from insitu.config import parts, toml
from insitu.config.data import Examples, read
from insitu.config.place import Place
from insitu.core import checks
from insitu.core.errors import ConfigError, PlanError
from insitu.core.types import Client, Population
from insitu.data import Clients
from insitu.engines.https.site.rules import KINDS, Rules

FILE = "site.toml"


@dataclass(frozen=True, kw_only=True)
class SiteTable:
    """How the site works.

    cache         bytes of models that are kept, so that they are not fetched twice: a number, or ``"4GB"``
    proxy         ``http://host:port`` of an HTTP proxy; empty: what HTTPS_PROXY says
    share_schema  whether the shape of an example and the labels that occur here are told to the coordinator; if not,
                  only numbers of examples are
    """

    cache: int | str = "4GB"
    proxy: str = ""
    share_schema: bool = True

    def __post_init__(self) -> None:
        checks.size(cache=self.cache)
        if self.proxy and not self.proxy.startswith("http://"):
            raise PlanError(f"Expected proxy={self.proxy!r} to begin with http://")


@dataclass(frozen=True, kw_only=True)
class SiteData:
    """The site's examples, which are one client.

    source    as in a run's configuration: a data set's name with its options, or the site's own function,
              ``data.py:load``, which returns (x, y), a DataSet or Clients
    client    whose examples of a source that has several people's, hospitals' or the like: that key
    holdout   the fraction of examples that is held out for evaluation
    seed      which ones are
    """

    source: str | dict[str, Any]
    client: str | None = None
    holdout: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class AllowTable:
    """What is allowed: see :class:`insitu.engines.https.site.rules.Rules`."""

    algorithms: Sequence[str] = ("*",)
    learners: Sequence[str] = ("*",)
    stages: Sequence[str] = ("*",)
    reduces: Sequence[str] = ("*",)
    code: Sequence[str] = ()
    least_cohort: int = 2
    largest_model: int | str = "1GB"
    metrics: bool = True
    kinds: Sequence[str] = KINDS

    def __post_init__(self) -> None:
        checks.count(least_cohort=self.least_cohort)
        checks.size(largest_model=self.largest_model)
        for kind in self.kinds:
            checks.one_of(KINDS, kinds=kind)

    def rules(self) -> Rules:
        """As the agent takes them."""
        return Rules(**{**vars(self), "largest_model": checks.size(largest_model=self.largest_model)})


@dataclass(frozen=True)
class SiteFile:
    """A ``site.toml`` that was read and found right."""

    data: SiteData
    rules: Rules
    site: SiteTable
    place: Place

    def population(self) -> Population:
        """The one client that the data are, loaded. Raises ConfigError or DataError."""
        place, wanted = self.place.at("data"), self.data.client
        found = read(self.data.source, place.at("source"))
        if isinstance(found, Examples):
            found = self._clients(found, place)
        elif self.data.holdout:
            raise place.wrong("holdout", self.data.holdout, "the source gives clients, which hold out what they do")
        ids = [found.id_at(i) for i in range(len(found))]
        if wanted is None and len(ids) != 1:
            raise place.error(f"the source has {len(ids)} clients, and a site is one: say which, client = {ids[0]!r}")
        if wanted is not None and wanted not in ids:
            known = ", ".join(map(repr, ids[:8]))
            raise place.wrong("client", wanted, f"there is no such client in the source: there are {known}")
        return One(found, 0 if wanted is None else ids.index(wanted))

    def _clients(self, found: Examples, place: Place) -> Clients:
        options: dict[str, Any] = {"holdout": self.data.holdout, "schema": found.schema, "seed": self.data.seed}
        if self.data.client is None:
            return Clients.from_arrays(found.x, found.y, **options)
        if found.keys is None:
            raise place.wrong(
                "client", self.data.client, "the source does not say whose which example is: leave it out"
            )
        return Clients.by_key(found.x, found.y, found.keys, **options)

    def declared(self, population: Population) -> dict[str, Any]:
        """What the coordinator is told of the data: numbers of examples, and the schema where that is shared."""
        client = population.at(0)
        schema = population.schema()
        told: dict[str, Any] = {
            "examples": len(client.data), "holdout": 0 if client.holdout is None else len(client.holdout),
            "features": None, "classes": None,
        }  # fmt: skip
        if self.site.share_schema:
            if schema.features is not None:
                told["features"] = [int(n) for n in schema.features]
            if schema.classes is not None:
                told["classes"] = np.asarray(schema.classes).tolist()
        return told


class One:
    """One client of a population, by itself."""

    def __init__(self, whole: Population, place: int) -> None:
        self._client = whole.at(place)
        self._schema, self._holdout = whole.schema(), self._client.holdout is not None

    def __len__(self) -> int:
        return 1

    def id_at(self, place: int) -> str:
        """Its id in the source; the site has a name of its own."""
        return self._client.id

    def at(self, place: int) -> Client:
        """The client."""
        return self._client

    def size_at(self, place: int) -> int | None:
        """Its examples."""
        return len(self._client.data)

    def has_holdout(self) -> bool:
        """Whether it holds examples out."""
        return self._holdout

    def schema(self) -> Any:
        """What is known of the data."""
        return self._schema


_TABLES = {"data": SiteData, "allow": AllowTable, "site": SiteTable}


def load(path: Path) -> SiteFile:
    """Reads a ``site.toml``. Raises ConfigError, with table, key and the nearest right one."""
    place = Place(path.name, path.absolute().parent)
    told: Mapping[str, Any] = toml.read(path)
    for name, table in told.items():
        if name not in _TABLES:
            raise place.error(f"there is no table [{name}]: there are {', '.join(f'[{known}]' for known in _TABLES)}")
        if not isinstance(table, dict):
            raise place.error(f"{name} is no table: write [{name}]")
    if "data" not in told:
        raise ConfigError(f'{place}: the table [data] is missing: give it a source, such as source = "data.py:load"')
    made = {name: parts.of_class(kind, told.get(name, {}), place.at(name)) for name, kind in _TABLES.items()}
    return SiteFile(made["data"], made["allow"].rules(), made["site"], place)
