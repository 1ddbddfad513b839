"""What committed rounds were made of, as a chain of events that nobody can change one link of."""

from __future__ import annotations

from insitu.core import wire
from insitu.core.events import RoundSealed
from insitu.core.protocols import Store, Waits
from insitu.rounds.outcome import Model, Outcome


class Seals:
    """Seals a run's rounds one after another; goes on with the store's last one after a restart."""

    def __init__(self, run: str, store: Store | None) -> None:
        self._run, self._store = run, store
        self._last: tuple[str, str] | None = None
        """Digests: of the state after the last round, and of its seal."""

    def seal(self, session: Waits, before: Model, outcome: Outcome) -> RoundSealed:
        """The seal of a round that is about to be committed on the state ``before``."""
        assert outcome.model is not None
        round = outcome.model.version
        base, previous = self._last or (digest(before), self._previous(round))
        told = session.seal(round, {report.client for report in outcome.reports})
        sealed = RoundSealed(self._run, round, [list(one) for one in told], base, digest(outcome.model), previous)
        self._last = (sealed.model, sealed.digest())
        return sealed

    def _previous(self, round: int) -> str:
        found = self._store.events(self._run, until_round=round - 1, kinds=["RoundSealed"]) if self._store else []
        if not found:
            return ""
        return RoundSealed(**{key: value for key, value in found[-1].items() if key != "event"}).digest()


def digest(model: Model) -> str:
    """The digest of all that the next round is computed from, the clients' memories apart."""
    return wire.digest({"state": model.state, "stages": model.stages})
