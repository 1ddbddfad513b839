"""What ranks tell each other of their clients' answers beside the sums: packed by column, since there may be thousands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from insitu.core.types import Answer, Failure, Report, Task, Update


@dataclass(frozen=True)
class Told:
    """One rank's reports, answers and failures, without memories; ``kept`` are the indices of those that have one."""

    reports: list[Report]
    answers: list[Answer]
    failures: list[Failure]
    kept: list[int]


def pack(
    reports: Sequence[Report], answers: Sequence[Answer], failures: Sequence[Failure], said: list[str], pace: float
) -> dict[str, Any]:
    """A tree of all this. ``said`` are notices, ``pace`` the seconds that a unit of work took here."""
    names = list(dict.fromkeys(name for report in reports for name in report.metrics))
    return {
        "names": names,
        "index": np.array([report.index for report in reports], dtype=np.int64),
        "bytes": np.array([report.bytes_up for report in reports], dtype=np.int64),
        "has": np.array([[name in r.metrics for name in names] for r in reports], dtype=bool).reshape(
            len(reports), len(names)
        ),
        "metrics": np.array([[r.metrics.get(name, 0.0) for name in names] for r in reports], dtype=np.float64).reshape(
            len(reports), len(names)
        ),
        "answers": [
            {
                "index": answer.task.index,
                "value": answer.update.value,
                "weight": {part: float(w) for part, w in answer.update.weight.items()},
                "metrics": {name: float(x) for name, x in answer.update.metrics.items()},
            }
            for answer in answers
        ],
        "kept": sorted(
            [r.index for r in reports if r.memory is not None] + [a.task.index for a in answers if a.memory is not None]
        ),
        "failures": [[failure.index, failure.error, failure.trace] for failure in failures],
        "said": said,
        "pace": np.array(pace),
    }


def unpack(told: Mapping[str, Any], tasks: Mapping[int, Task]) -> Told:
    """The same again; ``tasks`` by index."""
    names = told["names"]
    reports = []
    columns = zip(told["index"].tolist(), told["bytes"].tolist(), told["has"], told["metrics"].tolist(), strict=True)
    for index, size, has, values in columns:
        metrics = {name: value for name, there, value in zip(names, has, values, strict=True) if there}
        reports.append(Report(tasks[index].client, index, metrics, size))
    answers = [
        Answer(tasks[one["index"]], Update(one["value"], one["weight"], one["metrics"])) for one in told["answers"]
    ]
    failures = []
    for index, error, trace in told["failures"]:
        task = tasks[index]
        failures.append(Failure(task.client, index, task.block, error, trace))
    return Told(reports, answers, failures, told["kept"])
