"""One worker process: it has its own rows, and adds its histograms to the others' by XGBoost's collective."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from xgboost import collective
from xgboost.callback import TrainingCallback
from xgboost.tracker import RabitTracker

LOOK_UP = 0.02
MOST_WORDS = 600
"""Characters of an error that are told."""
PARENT = os.getppid()


class Beat(TrainingCallback):
    """A byte a tree, by which the parent sees that there is work."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        with self.path.open("ab") as file:
            file.write(b".")
        if os.getppid() != PARENT:
            os._exit(1)  # whoever wanted the model is gone
        return False


def main(folder: str, rank: int) -> None:
    """Works, or ends with what went wrong in a few words."""
    try:
        work(folder, rank)
    except Exception as error:
        what = str(error).partition("Stack trace:")[0].strip()
        (Path(folder) / f"said{rank}").write_text(f"{type(error).__name__}: {what[:MOST_WORDS]}")
        os._exit(1)  # a tracker that is left at this moment would wait, and complain


def work(folder: str, rank: int) -> None:
    """Trains with the others and, at rank 0, writes the model."""
    place = Path(folder)
    job = json.loads((place / "job.json").read_text())
    x, y = np.load(place / f"x{rank}.npy"), np.load(place / f"y{rank}.npy")
    world, seconds = job["world"], max(1, math.ceil(job["timeout"]))
    tracker = _tracker(place, world, seconds) if world > 1 and rank == 0 else None
    (place / f"ready{rank}").touch()
    own = {"dmlc_task_id": f"{rank:04d}", "dmlc_timeout": seconds}
    with collective.CommunicatorContext(**_address(place, job["timeout"]), **own) if world > 1 else nullcontext():
        (place / f"met{rank}").touch()
        rows = xgboost.QuantileDMatrix(x, y, max_bin=job["params"]["max_bin"], nthread=job["params"]["nthread"])
        booster = xgboost.train(job["params"], rows, job["trees"], callbacks=[Beat(place / f"beat{rank}")])
        if rank == 0:
            (place / "part").write_bytes(booster.save_raw("ubj"))
            (place / "part").rename(place / "model")
    if tracker is not None:
        tracker.wait_for(timeout=seconds)


def _tracker(place: Path, world: int, seconds: int) -> RabitTracker:
    """Where the workers meet, on this machine only; its address is in a file. Ranks go by the task's name."""
    tracker = RabitTracker(world, "127.0.0.1", sortby="task", timeout=seconds)
    tracker.start()
    (place / "address.part").write_text(json.dumps(tracker.worker_args()))
    (place / "address.part").rename(place / "address")
    return tracker


def _address(place: Path, timeout: float) -> dict[str, Any]:
    until = time.monotonic() + timeout
    while not (place / "address").exists():
        if time.monotonic() > until or os.getppid() != PARENT:
            raise TimeoutError(f"worker 0 has not opened a meeting place within timeout={timeout:g} s")
        time.sleep(LOOK_UP)
    return dict(json.loads((place / "address").read_text()))
