"""What a desk of runs needs of whatever trains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from insitu.core.protocols import Engine
from insitu.core.types import Population


class Backend(Protocol):
    """What trains: the exchange with the sites. May be called from any thread."""

    def engine(self, run: str, tables: Mapping[str, Any]) -> Engine:
        """The engine for a run."""
        ...

    def population(self, run: str) -> Population:
        """The sites that take part in a run, as the ledger's roster says."""
        ...

    def status(self, run: str) -> Mapping[str, Any]:
        """What is open in a run now; empty where nothing is."""
        ...

    def halt(self, run: str, why: str) -> None:
        """Makes the run's session raise Halted, now or when it is next used."""
        ...

    def release(self, run: str) -> None:
        """The run may be worked on again: undoes ``halt``."""
        ...

    def finished(self, run: str) -> None:
        """All rounds are done: what was kept to go on with it is no longer needed."""
        ...
