"""The sites that take part in a run, as a population: their names and what they declare; their data stay with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from insitu.core.errors import DataError
from insitu.core.federation import Ledger
from insitu.core.types import Schema


class Sites:
    """The members of a run's roster, in their places. It grows between rounds only.

    Before :meth:`begin` says which round comes next it holds all of the roster; from then on those who take part in
    that round, so that a restart draws the same cohort. Read anew from the ledger by ``begin``.
    """

    def __init__(self, ledger: Ledger, run: str) -> None:
        self._ledger, self._run = ledger, run
        self._names: list[str] = []
        self._first: list[str] = []
        self._declared: dict[str, Mapping[str, Any]] = {}
        self._read(None)

    def __len__(self) -> int:
        return len(self._names)

    def id_at(self, place: int) -> str:
        """The site's name."""
        return self._names[place]

    def at(self, place: int) -> NoReturn:
        raise DataError(
            f"the data of {self._names[place]!r} are at that site and stay there: ask it with a task, or declare"
            " what is needed in its site.toml"
        )

    def size_at(self, place: int) -> int | None:
        """The examples that it declares."""
        examples = declared(self._declared.get(self._names[place], {}), "examples")
        return None if examples is None else int(examples)

    def has_holdout(self) -> bool:
        """Whether some site declares that it holds examples out."""
        return any(declared(self._declared.get(name, {}), "holdout") for name in self._names)

    def schema(self) -> Schema:
        """What those who were there from the first round on declare, put together. Raises DataError, naming two sites
        that do not fit together."""
        features = self._same("features")
        told = {name: declared(self._declared.get(name, {}), "classes") for name in self._first}
        without = [name for name, classes in told.items() if classes is None]
        if without:
            if len(without) < len(told):
                other = next(name for name in told if name not in without)
                raise DataError(f"site {other!r} declares classes and {without[0]!r} none: both must learn the same")
            return Schema(features, None)
        kinds = {isinstance(label, str): name for name, classes in told.items() for label in classes}
        if len(kinds) > 1:
            raise DataError(f"site {kinds[True]!r} declares classes as text and {kinds[False]!r} as numbers: agree")
        whole = sorted({label for classes in told.values() for label in classes})
        return Schema(features, np.array(whole) if whole else None)

    def where(self) -> str:
        """For whoever would look at data."""
        return "the sites"

    def begin(self, round: int) -> None:
        """This round comes next: whoever takes part in it is there from now on."""
        self._read(round)

    def grow(self, round: int) -> list[str]:
        """Takes in, from ``round`` on, the enrolled sites that have declared their data since; their names."""
        known = {site for site, _ in self._ledger.roster(self._run)}
        new = [
            member.name
            for member in self._ledger.members()
            if member.role == "site" and member.revoked is None and member.declared and member.name not in known
        ]
        if new:
            self._ledger.admit(self._run, new, round)
        return new

    def declared(self, name: str) -> Mapping[str, Any]:
        """What a site says of its data."""
        return self._declared.get(name, {})

    def _read(self, round: int | None) -> None:
        roster = self._ledger.roster(self._run)
        self._declared = {member.name: member.declared for member in self._ledger.members()}
        self._names = [site for site, since in roster if round is None or since <= round]
        self._first = [site for site, since in roster if since <= 1]

    def _same(self, name: str) -> tuple[int, ...] | None:
        first: tuple[str, Any] | None = None
        for site in self._first:
            value = declared(self._declared.get(site, {}), name)
            if first is not None and value != first[1]:
                raise DataError(
                    f"site {first[0]!r} declares {name} {first[1]!r} and {site!r} {value!r}: their data must have the"
                    " same columns"
                )
            first = first or (site, value)
        return None if first is None or first[1] is None else tuple(int(n) for n in first[1])


def declared(told: Mapping[str, Any], name: str) -> Any:
    """One thing out of what a site declares, which may stand beside its versions or under ``data``."""
    inner = told.get("data")
    return (inner if isinstance(inner, Mapping) else told).get(name)
