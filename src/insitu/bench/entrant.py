"""One process that trains round by round when told to: ``python -m insitu.bench.entrant loop lr``.

It reads a line of JSON a round on stdin, ``{"round": 3, "cohort": [0, 7, …]}``, and answers with a line on stdout,
``{"loss": 2.1}``; ``{"ready": …}`` comes first, when data and model are there. At the end of stdin it ends. Peers'
scripts in ``benchmarks/peers`` speak the same, so that everyone is measured from outside and in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from insitu.bench.workload import BATCH, LR, Workload

ENTRANTS = ("loop", "insitu")


class Line:
    """The other side's questions and our answers. What libraries print goes to stderr from here on."""

    def __init__(self) -> None:
        self._answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)

    def say(self, **answer: Any) -> None:
        """One answer."""
        print(json.dumps(answer), file=self._answers)

    def next(self) -> dict[str, Any] | None:
        """The next question, or None at the end."""
        text = sys.stdin.readline()
        return json.loads(text) if text.strip() else None


def loop(line: Line, name: str, data: Workload) -> None:
    """The loop written by hand, on one thread."""
    import torch

    from insitu.bench import loop, models

    torch.set_num_threads(1)
    model = models.make(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    line.say(ready=True)
    while (question := line.next()) is not None:
        state, loss = loop.round(model, state, loop.shuffled(data, question["cohort"]))
        line.say(loss=loss)


def run_insitu(line: Line, name: str, data: Workload, *, rounds: int, engine: Any, store: str | None) -> None:
    """One run with default settings, held at the end of every round until the next is asked for."""
    import insitu
    from insitu.algorithms.fedavg import FedAvg
    from insitu.bench import models
    from insitu.core import events
    from insitu.data.clients import Clients
    from insitu.learners.torch import TorchLearner
    from insitu.observe.lines import Lines

    plan = insitu.Plan(
        FedAvg(lr=LR, batch_size=BATCH),
        learner=TorchLearner(models.make(name)),
        cohort=insitu.Uniform(data.cohort),
        evaluate_every=0,
    )
    clients = Clients.from_arrays(data.x, data.y, data.parts())
    about: dict[str, Any] = {}

    def hold(event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            about.update(event.choices)
        if isinstance(event, events.Notice):
            about.setdefault("notices", []).append(event.text)
        if isinstance(event, events.RoundCommitted):
            line.say(loss=event.metrics.get("loss"), round=event.round, failed=event.failed, about=about)
            if line.next() is None:
                sys.exit(0)

    line.say(ready=True)
    if line.next() is not None:
        insitu.run(plan, clients, rounds=rounds, engine=engine, store=store, observers=[Lines(), hold])


def engine_of(name: str | None, settings: dict[str, Any]) -> Any:
    """The engine of this name with these settings; None: what insitu chooses by itself."""
    if name is None:
        return None
    from insitu.names import find

    return find("engines", name)(**settings)


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m insitu.bench.entrant")
    parser.add_argument("entrant", choices=ENTRANTS)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--clients", type=int, default=None)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--engine", default=None)
    parser.add_argument("--settings", type=json.loads, default={})
    given = parser.parse_args(arguments)
    line = Line()
    from insitu.bench import models

    data = models.data(given.model, given.clients, given.cohort)
    if given.entrant == "loop":
        loop(line, given.model, data)
        return
    engine = engine_of(given.engine, given.settings)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "insitu.db")
        run_insitu(line, given.model, data, rounds=given.rounds, engine=engine, store=store)


if __name__ == "__main__":
    main()
