"""History: one row a round, out of the run's events."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from insitu.core.errors import MissingExtra


class History(Sequence[Mapping[str, Any]]):
    """The rounds of a run, oldest first, each a dict.

    round, clients, failed, seconds, bytes_up, bytes_down
    train_…      means over the examples that the clients trained on
    loss, …      on the central test set, in rounds that were evaluated
    clients_…    on the clients' held-out parts; clients_accuracy_worst10, …_p10, …_p50, …_p90 over clients
    and what the algorithm measures of itself (disagreement, inertia). On several ranks, ``wire_bytes`` is what they sent
    each other, and ``wire_bytes_0``, … what each of them sent.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        by_round = {row["round"]: dict(row) for row in rows}
        self._rows: list[dict[str, Any]] = [by_round[round] for round in sorted(by_round)]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._rows[index]

    def __repr__(self) -> str:
        last = self._rows[-1] if self._rows else {}
        return f"History({len(self)} rounds, last {last})"

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """The rounds in which ``name`` was measured, and its values."""
        rows = [row for row in self if row.get(name) is not None]
        return [row["round"] for row in rows], [row[name] for row in rows]

    def to_frame(self) -> Any:
        """A pandas DataFrame, indexed by round."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtra("pandas", "frames", "History.to_frame()") from error
        return pd.DataFrame([dict(row) for row in self]).set_index("round")

    def take(self, event: Mapping[str, Any]) -> None:
        """Adds what an event (as plain data) tells of its round."""
        round = event["round"]
        if event["event"] == "RoundCommitted":
            names = ("clients", "failed", "seconds", "bytes_up", "bytes_down")
            row = {"round": round, **{name: event[name] for name in names}}
            row |= {f"train_{name}": value for name, value in event["metrics"].items()}
            self._put(round, row | event["measures"])
        elif event["event"] == "Evaluated" and (found := self._at(round)) is not None:
            prefix = "" if event["where"] == "central" else "clients_"
            found |= {f"{prefix}{name}": value for name, value in event["metrics"].items()}
            for name, figures in event["spread"].items():
                for figure in ("worst10", "p10", "p50", "p90"):
                    found[f"{prefix}{name}_{figure}"] = figures[figure]
        elif event["event"] == "WireBytes" and (found := self._at(round)) is not None:
            found["wire_bytes"] = sum(event["sent"])
            found |= {f"wire_bytes_{rank}": sent for rank, sent in enumerate(event["sent"])}

    def restore(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows of before: what rank 0 knows of a run that goes on."""
        for row in rows:
            self._put(row["round"], dict(row))

    def _place(self, round: int) -> int:
        """Where the round's row is, or belongs: nearly always at the end."""
        if not self._rows or self._rows[-1]["round"] < round:
            return len(self._rows)
        return bisect_left(self._rows, round, key=lambda row: row["round"])

    def _at(self, round: int) -> dict[str, Any] | None:
        place = self._place(round)
        return self._rows[place] if place < len(self) and self._rows[place]["round"] == round else None

    def _put(self, round: int, row: dict[str, Any]) -> None:
        place = self._place(round)
        self._rows[place : place + (self._at(round) is not None)] = [row]
