"""What is trained in a simulation: a tiny plan, by the seed, its clients, and the answer where nothing goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import insitu
from insitu.core.types import Client
from insitu.data import Clients
from insitu.federation import tables as configured
from insitu.rounds.outcome import Model
from insitu.rounds.plan import Plan
from insitu.seals import digest

NAMES = ("aachen", "berlin", "cadiz", "delft", "evora", "florence")
FEATURES, CLASSES = 3, 2
RUN = "20260101-000000-0001"


@dataclass(frozen=True)
class Study:
    """One run to be.

    tables   of its configuration
    names    the sites from the beginning; ``late`` one that joins in the middle, or empty
    """

    seed: int
    tables: dict[str, Any]
    names: tuple[str, ...]
    late: str = ""

    @classmethod
    def of(cls, seed: int) -> Study:
        """The seed's own."""
        random = Random(f"{seed} study")
        names = NAMES[: random.randint(3, 6)]
        algorithm = {"name": ("fedavg", "scaffold")[seed % 2], "lr": 0.2, "epochs": 1, "batch_size": 4}
        tables: dict[str, Any] = {
            "run": {"rounds": random.randint(3, 5), "seed": seed % 1000, "evaluate_every": random.choice((0, 0, 2))},
            "algorithm": algorithm,
            "learner": {"name": "logistic"},
        }
        policy: dict[str, Any] = {}
        kind = random.random()
        if kind < 0.2:
            policy = {"over_select": 0.5, "quorum": 0.5}
            tables["cohort"] = {"name": "uniform", "clients": max(2, len(names) - 2)}
        elif kind < 0.4:
            policy = {"quorum": 0.5, "deadline": "00:05:00", "missed": random.choice(("retry", "wait")), "retries": 5}
        elif kind < 0.5:
            policy = {"gone": "00:04:00", "quorum": 0.5}
        if policy:
            tables["policy"] = policy
        late = "zagreb" if random.random() < 0.15 and algorithm["name"] == "fedavg" else ""
        return cls(seed, tables, names, late)

    @property
    def rounds(self) -> int:
        """How many."""
        return int(self.tables["run"]["rounds"])

    @property
    def all_names(self) -> tuple[str, ...]:
        """Those who come late included."""
        return (*self.names, self.late) if self.late else self.names

    def plan(self) -> Plan:
        """As a coordinator makes it of the tables."""
        return configured.submitted(self.tables, RUN, Path("/nowhere")).plan()

    @cached_property
    def clients(self) -> Clients:
        """Everyone's data."""
        random, names = np.random.default_rng(self.seed), self.all_names
        sizes = random.integers(6, 12, len(names))
        x = random.normal(size=(int(sizes.sum()), FEATURES))
        y = (x.sum(axis=1) > 0).astype(int)
        ends = np.cumsum(sizes)
        for end in ends:  # both classes at every site
            y[end - 1], y[end - 2] = 0, 1
        parts = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        holdout = 0.3 if self.tables["run"]["evaluate_every"] else 0.0
        return Clients.from_arrays(x, y, parts, ids=names, holdout=holdout)

    def client(self, name: str) -> Client:
        """One site's."""
        return self.clients.at(self.all_names.index(name))

    def declared(self, name: str) -> dict[str, Any]:
        """What a site says of its data."""
        client = self.client(name)
        holdout = 0 if client.holdout is None else len(client.holdout)
        classes = list(range(CLASSES))
        return {"examples": len(client.data), "holdout": holdout, "features": [FEATURES], "classes": classes}

    def undisturbed(self) -> str:
        """The digest of the last round's model, where everyone answers and nothing fails: all in one process."""
        assert not self.late
        run = self.tables["run"]
        done = insitu.run(
            self.plan(), self.clients, rounds=self.rounds, seed=run["seed"], engine="inline", store=None, observers=[]
        )
        return digest(Model(done.rounds, done.state, {}))
