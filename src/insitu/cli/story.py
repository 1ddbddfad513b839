"""One run, out of the store: its record, its rounds, who failed, how much was sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from insitu.history import History

if TYPE_CHECKING:
    from insitu.store.sqlite import SqliteStore


@dataclass(frozen=True)
class Story:
    """What a store knows of a run.

    failures  {"round", "client", "error"} in the order in which they happened
    clients   by client the newest of its metrics: ``examples``, ``train_…``, and those of its held-out part
    """

    record: dict[str, Any]
    history: History
    failures: list[dict[str, Any]]
    clients: dict[str, dict[str, Any]]

    @property
    def bytes_up(self) -> int:
        """Bytes of the arrays that clients sent, in all rounds together."""
        return sum(row["bytes_up"] for row in self.history)

    @property
    def bytes_down(self) -> int:
        """Bytes of the arrays sent to clients."""
        return sum(row["bytes_down"] for row in self.history)

    def last(self) -> Mapping[str, Any]:
        """The newest metrics: of the last round, and of the last evaluation where that is older."""
        newest: dict[str, Any] = {}
        for row in self.history:
            newest |= row
        return newest

    def plain(self) -> dict[str, Any]:
        """All of it as JSON-ready data."""
        return {
            **self.record,
            "committed": len(self.history),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "history": [dict(row) for row in self.history],
            "failures": self.failures,
            "by_client": self.clients,
        }


def read(store: SqliteStore, run: str) -> Story:
    """The story of a run, whose full id it is."""
    history, failures, clients = History(), [], {}  # type: ignore[var-annotated]
    for event in store.events(run):
        history.take(event)
        if event["event"] == "ClientFailed":
            failures.append({key: event[key] for key in ("round", "client", "error")})
        elif event["event"] == "UpdatesArrived":
            for client, examples, _, *means in event["rows"]:
                own = clients.setdefault(client, {})
                own |= {"examples": int(examples), "trained in": event["round"]}
                own |= {f"train_{name}": value for name, value in zip(event["metrics"], means, strict=True)}
        elif event["event"] == "Evaluated":
            for client, metrics in event["clients"].items():
                clients.setdefault(client, {}).update(metrics)
    return Story(store.record(run), history, failures, clients)
