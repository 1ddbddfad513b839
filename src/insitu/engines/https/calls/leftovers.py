"""Documents that only calls have named which were dropped: removed when nobody can be about to name them again."""

from __future__ import annotations

from collections.abc import Iterable

from insitu.core.federation import Ledger
from insitu.engines.https.calls.shelf import Shelf


class Leftovers:
    """Methods but ``note`` wait for the ledger. Raises StoreError; what was noted is kept for the next time then."""

    def __init__(self, ledger: Ledger, shelf: Shelf) -> None:
        self._ledger, self._shelf = ledger, shelf
        self._noted: dict[str, set[str]] = {}

    def note(self, run: str, documents: Iterable[str]) -> None:
        """The run's calls that name these are about to be dropped."""
        self._noted.setdefault(run, set()).update(documents)

    def discard(self, run: str) -> None:
        """Removes what was noted and no call names; while some run packs, it waits for the next time."""
        with self._shelf.apart() as free:
            if free and self._noted.get(run):
                self._ledger.discard(run, self._noted[run])
                del self._noted[run]

    def discard_all(self, run: str) -> bool:
        """Removes all documents of a run that was forgotten; False where another run packs, and it has to wait."""
        with self._shelf.apart() as free:
            if free:
                self._ledger.discard(run)
        return free
