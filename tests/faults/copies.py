"""A federation that was made once, of which every test starts a copy; and the model that it has to end with."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "federation"))
from processes import SITES, Federation

import insitu
from insitu.algorithms.scaffold import Scaffold
from insitu.data import Clients, sets
from insitu.learners.numpy import LogisticLearner

ROUNDS = 4
PLAN = f"""
[run]
rounds = {ROUNDS}
seed = 3

[learner]
name = "logistic"

[algorithm]
name = "scaffold"
lr = 0.1
batch_size = 16
"""
ADDRESS = "10.77.0.1"
"""The coordinator's, as a site in a network of its own sees it."""


class Copy(Federation):
    """A copy of the one that was made, started from the beginning."""

    def __init__(self, made: Federation, folder: Path) -> None:
        self.folder, self.port, self.running = folder, made.port, {}
        shutil.copytree(made.folder, folder, dirs_exist_ok=True)
        for log in folder.glob("*.log"):
            log.unlink()

    def submit(self) -> str:
        return self.call("submit", "plan.toml", "--federation", "study").strip()

    def status(self, run: str) -> str:
        with self.operator() as operator:
            return operator.run(run)["status"]

    def finishes(self, run: str, seconds: float = 60.0) -> None:
        """To the end, and with the model of a run that nobody disturbed, bit for bit."""
        self.until(lambda: self.status(run) == "finished", "the run is finished", seconds)
        self.call("model", "last", "--to", "model.npz", "--federation", "study")
        with np.load(self.folder / "model.npz") as found:
            for name, value in undisturbed().items():
                np.testing.assert_array_equal(found[f"shared/{name}"], value)

    def dies(self, name: str, seconds: float = 40.0) -> int:
        """Waits for a process's end."""
        self.until(lambda: self.running[name].poll() is not None, f"{name} dies", seconds)
        return self.running.pop(name).returncode


_model: dict[str, np.ndarray] = {}


def undisturbed() -> dict[str, np.ndarray]:
    """The same plan on the same data in this process."""
    if not _model:
        found = sets.load("breast_cancer")
        owner = np.arange(len(found.x)) % 2
        parts = [np.flatnonzero(owner == part) for part in (0, 1)]
        population = Clients.from_arrays(found.x, found.y, parts, ids=SITES)
        plan = insitu.Plan(Scaffold(lr=0.1, batch_size=16), learner=LogisticLearner())
        done = insitu.run(plan, population, rounds=ROUNDS, seed=3, engine="inline", store=None, observers=[])
        _model.update(done.params)
    return _model
