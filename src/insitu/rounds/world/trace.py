"""Availability as it was recorded: intervals by device, out of a CSV file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.core.types import Population
from insitu.rounds.world.availability import Availability
from insitu.rounds.world.distribution import row_of
from insitu.rounds.world.table import Table


class Intervals(NamedTuple):
    """Intervals sorted by device and time: device d has ``begin[first[d]:first[d + 1]]``."""

    names: tuple[str, ...]
    first: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    digest: str


@dataclass(frozen=True)
class Trace(Availability):
    """The intervals in which recorded devices were available, over and over again.

    path    a CSV file with the columns ``device``, ``start`` and ``end`` (seconds), one interval a row, in any order;
            intervals of a device that touch or overlap become one
    period  when the recording starts again; None: after its last interval
    by      ``"seed"``: every client gets one of the devices at random, that of the same row as its :class:`Measured`
            speed where there are as many; ``"id"``: the device of the client's own id, and a client without one is
            never available

    Raises PlanError, with file and line, for what is not an interval.
    """

    path: Path | str
    period: timedelta | None = None
    by: str = "seed"

    def __post_init__(self) -> None:
        checks.one_of(("seed", "id"), by=self.by)
        if self.period is not None and not isinstance(self.period, timedelta):
            raise PlanError(f"Expected period={self.period!r} to be a timedelta: timedelta(days=7), say")
        found = _read(Path(self.path).expanduser())
        period = float(found.end.max()) if self.period is None else self.period.total_seconds()
        if period < found.end.max():
            end = timedelta(seconds=float(found.end.max()))
            raise PlanError(f"period={self.period} is shorter than {self.path}, which ends after {end}")
        object.__setattr__(self, "_found", found)
        object.__setattr__(self, "_period", period)

    @classmethod
    def part_name(cls) -> str:
        return "trace"

    def config(self) -> dict[str, Any]:
        found: Intervals = vars(self)["_found"]
        return {
            "name": self.part_name(), "by": self.by, "period": vars(self)["_period"], "devices": len(found.names),
            "sha256": found.digest,
        }  # fmt: skip

    def habits(self, seed: int, clients: Population) -> tuple[np.ndarray, ...]:
        names = vars(self)["_found"].names
        if self.by == "seed":
            return (row_of(seed, np.arange(len(clients)), len(names)),)
        number = {name: i for i, name in enumerate(names)}
        device = np.array([number.get(clients.id_at(place), -1) for place in range(len(clients))])
        if (device < 0).all():
            shown = ", ".join(map(repr, names[:3]))
            raise PlanError(f"no client has the id of a device in {self.path} ({shown}, …): give by='seed'")
        return (device,)

    def spells(self, habits: tuple[np.ndarray, ...], now: float) -> tuple[np.ndarray, np.ndarray]:
        found: Intervals = vars(self)["_found"]
        devices, (own,) = len(found.names), habits
        # Each device is looked up once, however many clients have it. The last, of number -1, is nobody's.
        known = np.arange(devices) if len(own) > devices else np.unique(own[own >= 0])
        begin, end = np.full((2, devices + 1), np.inf)
        begin[known], end[known] = self._of_devices(found, known, now)
        return begin[own], end[own]

    def _of_devices(self, found: Intervals, device: np.ndarray, now: float) -> tuple[np.ndarray, np.ndarray]:
        period: float = vars(self)["_period"]
        turns = np.full(len(device), np.floor(now / period))
        low, high = found.first[device], found.first[device + 1]
        at = _first_after(found.end, low, high, now - turns * period)
        # After its last interval a device waits for the first one of the next turn.
        over = at == high
        turns, at = turns + over, np.where(over, low, at)
        begin, end = turns * period + found.begin[at], turns * period + found.end[at]
        # An interval that reaches the recording's end goes on where the first one begins with it.
        goes_on = (found.end[at] == period) & (found.begin[low] == 0)
        end = np.where(goes_on, (turns + 1) * period + found.end[low], end)
        return begin, np.where((found.begin[at] == 0) & (found.end[at] == period), np.inf, end)


def _first_after(values: np.ndarray, low: np.ndarray, high: np.ndarray, than: np.ndarray) -> np.ndarray:
    """For each row the first index in [low, high) whose value is greater, or high: a binary search of many at once."""
    low, high = low.copy(), high.copy()
    while (low < high).any():
        middle = (low + high) // 2
        right = (low < high) & (values[np.minimum(middle, len(values) - 1)] <= than)
        low, high = np.where(right, middle + 1, low), np.where(right, high, np.where(low < high, middle, high))
    return low


def _read(path: Path) -> Intervals:
    table = Table.read(path, ("device", "start", "end"))
    names = tuple(dict.fromkeys(table.columns["device"]))
    number = {name: i for i, name in enumerate(names)}
    device = np.array([number[name] for name in table.columns["device"]])
    begin, end = table.numbers("start"), table.numbers("end")
    if (wrong := np.flatnonzero(~((begin >= 0) & (begin < end)))).size:
        row = int(wrong[0])
        raise PlanError(f"{table.where(row)}: from {begin[row]:g} to {end[row]:g}: expected 0 <= start < end")
    order = np.lexsort((begin, device))
    device, begin, end = device[order], begin[order], end[order]
    keep_device: list[int] = []
    keep_begin: list[float] = []
    keep_end: list[float] = []
    for d, b, e in zip(device.tolist(), begin.tolist(), end.tolist(), strict=True):
        if keep_device and keep_device[-1] == d and b <= keep_end[-1]:
            keep_end[-1] = max(keep_end[-1], e)
            continue
        keep_device.append(d)
        keep_begin.append(b)
        keep_end.append(e)
    first = np.searchsorted(keep_device, np.arange(len(names) + 1))
    return Intervals(names, first, np.array(keep_begin), np.array(keep_end), table.digest)
