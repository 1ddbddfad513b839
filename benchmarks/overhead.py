"""What a round costs beside training: checks, reduce, events, store, observers, evaluation. CPU time of one process.

    python benchmarks/overhead.py [--rounds 300] [--json FILE]

no-op round     FedAvg whose clients take no step: each of 100 clients gives back the model that it was sent (logistic
                regression, 784 → 10, torch tensors), inline engine, no evaluation; in ms a round, without a store, with
                one, and with one and observers (a line of JSON an event)
µs a client     the pieces on the same updates, each by itself: check (``answer``: structure, NaN), fold (``fold_in``),
                events with history and store (written behind, flushed at the end)
evaluation      time of an evaluation divided by that of a plain forward pass over all examples at once, written by hand
                with the same loss and metric; on a test set of 10,000 examples (CNN: 1,000), and on the held-out
                examples of 1,000 clients (CNN: 100), 5 each

Every figure is the median of several measurements; the ratios are of measurements that alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core import events
from insitu.core.protocols import Checkpoint, Setting
from insitu.core.types import Data, Report, Task, Update, Variables
from insitu.data import Clients
from insitu.engines.inline import Inline
from insitu.history import History
from insitu.learners.torch import TorchLearner
from insitu.observe.jsonl import JsonLines
from insitu.rounds import evaluate as measuring
from insitu.rounds.client import answer
from insitu.rounds.evaluate import evaluate_block
from insitu.rounds.fold import fold_in
from insitu.store.sqlite import SqliteStore

CLIENTS = 100


class Still:
    """A learner that takes no step: what it is sent is what it tells."""

    metric_names = ("loss", "accuracy")

    def config(self) -> dict[str, Any]:
        return {"name": "still"}

    def resolve(self, schema: Any) -> Still:
        return self

    def init(self, seed: int) -> Variables:
        return Variables({"weight": torch.zeros(10, 784), "bias": torch.zeros(10)})

    def check(self, client: Any) -> None:
        """Any data will do."""

    def fit(self, variables: Variables, data: Data, **_: Any) -> tuple[Variables, dict[str, float]]:
        return variables, {"examples": float(len(data)), "loss": 1.0, "accuracy": 0.5}

    def evaluate(self, variables: Variables, data: Data) -> dict[str, float]:
        return {"examples": float(len(data)), "loss": 1.0, "accuracy": 0.5}

    def predict(self, variables: Variables, x: Any) -> Any:
        return np.zeros(len(x))

    def model(self, variables: Variables) -> Any:
        return variables


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of this process, all threads together."""
    start = time.process_time()
    work()
    return time.process_time() - start


def population() -> Clients:
    """100 clients of 10 examples."""
    x = np.zeros((10 * CLIENTS, 784), dtype="float32")
    return Clients.from_arrays(x, np.arange(len(x)) % 10, np.array_split(np.arange(len(x)), CLIENTS))


def no_op(rounds: int, folder: Path, store: bool, observed: bool) -> float:
    """ms of CPU a round, the start and the end of the run taken out by a run of a tenth of the rounds."""
    plan, clients = insitu.Plan(FedAvg(), Still()), population()

    def measured(n: int) -> float:
        where = folder / f"{time.monotonic_ns()}.db" if store else None
        observers = [JsonLines(folder / f"{time.monotonic_ns()}.jsonl")] if observed else []
        return cpu(lambda: insitu.run(plan, clients, rounds=n, engine=Inline(), store=where, observers=observers))

    few = max(1, rounds // 10)
    return (measured(rounds) - measured(few)) / (rounds - few) * 1e3


def pieces(rounds: int, folder: Path) -> dict[str, float]:
    """µs of CPU a client for each piece by itself."""
    plan = insitu.Plan(FedAvg(), Still())
    shared = {"weight": torch.zeros(10, 784), "bias": torch.zeros(10)}
    message = {"shared": shared, "buffers": {}, "lr": torch.tensor(0.1)}
    change = {"weight": torch.randn(10, 784), "bias": torch.randn(10)}
    metrics = {"examples": 10.0, "loss": 10.0, "accuracy": 5.0}
    told = [
        (
            Task("run", 1, 0, "train", f"client-{i}", message, 0, i, i),
            Update({"shared": change}, {"shared": 10.0}, metrics),
        )
        for i in range(CLIENTS)
    ]
    answers = [answer(plan, task, update, None, None) for task, update in told]

    def check() -> None:
        for task, update in told:
            answer(plan, task, update, None, None)

    def fold() -> None:
        accumulator = plan.reduce.zero()
        for one in answers:
            accumulator = fold_in(plan, accumulator, one)

    def each(work: Callable[[], None]) -> float:
        work()
        return statistics.median(cpu(work) for _ in range(max(5, rounds))) / CLIENTS * 1e6

    with SqliteStore(folder / "pieces.db") as store:
        store.create("run", {})
        history = History()

        def told_and_kept() -> None:
            for n in range(1, rounds + 1):
                one_round(store, history, n, shared)
            store.flush()

        kept = cpu(told_and_kept) / rounds / CLIENTS * 1e6
    return {"check": each(check), "fold": each(fold), "events and store": kept}


def one_round(store: SqliteStore, history: History, n: int, state: Any) -> None:
    sums = {"examples": 10.0, "loss": 7.0, "accuracy": 5.0}
    reports = [Report(f"client-{i}", i, sums, 31400) for i in range(CLIENTS)]
    store.event("run", events.UpdatesArrived("run", n, *measuring.rows(reports), 31404))
    done = events.RoundCommitted("run", n, CLIENTS, 0, 0.1, {"loss": 0.7}, 3140000, 3140400)
    history.take(done.plain())
    store.event("run", done)
    store.commit("run", Checkpoint(n, {"shared": state}, {}, {}))


class Cnn(nn.Module):
    """conv 5×5×32, pool, conv 5×5×64, pool, dense 512, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 5, padding=2)
        self.second = nn.Conv2d(32, 64, 5, padding=2)
        self.dense = nn.Linear(7 * 7 * 64, 512)
        self.last = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.first(x.reshape(-1, 1, 28, 28))), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        return self.last(F.relu(self.dense(x.flatten(1))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LR": lambda: nn.Linear(784, 10),
    "MLP": lambda: nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)),
    "CNN": Cnn,
}


def plain(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """What a researcher writes: one forward pass, loss and accuracy."""
    with torch.no_grad():
        output = module(x)
        return float(F.cross_entropy(output, y, reduction="sum")), float((output.argmax(1) == y).sum())


def ratio(work: Callable[[], Any], yardstick: Callable[[], Any], times: int = 9) -> float:
    """CPU time of ``work`` as a fraction of the yardstick's: the median of measurements that alternate."""
    work(), yardstick()
    return statistics.median(cpu(work) / cpu(yardstick) for _ in range(times))


def evaluation(name: str, n: int) -> dict[str, float]:
    """Ratios of the central and of the clients' evaluation."""
    rng = np.random.default_rng(0)
    module = MODELS[name]().eval()
    data = Data(rng.normal(size=(n, 784)).astype("float32"), rng.integers(0, 10, n))
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    learner = TorchLearner(module)
    variables = learner.init(0)
    found = {
        f"evaluation, {name} (ratio)": ratio(lambda: learner.evaluate(variables, data), lambda: plain(module, x, y))
    }
    plan = insitu.Plan(FedAvg(), learner)
    few = n // 2
    parts = np.split(np.arange(n), n // 10)  # ten examples each, five of which are held out
    clients = Clients.from_arrays(data.x, data.y, parts, holdout=0.5)
    message = {"shared": variables.shared, "buffers": variables.buffers}
    tasks = [Task("r", 1, 1, "evaluate", clients.id_at(i), message, 0, i, i) for i in range(len(clients))]
    setting = Setting(plan, clients, {}, 1, 0)
    found[f"clients' evaluation, {name} (ratio)"] = ratio(
        lambda: evaluate_block(setting, tasks), lambda: plain(module, x[:few], y[:few])
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, float] = {}
        for label, store, observed in (("no store", False, False), ("store", True, False), ("store+jsonl", True, True)):
            figures[f"no-op round, {label} (ms)"] = no_op(given.rounds, folder, store, observed)
        for label, value in pieces(given.rounds, folder).items():
            figures[f"{label} (µs a client)"] = value
    for name in MODELS:
        figures |= evaluation(name, 1000 if name == "CNN" else 10_000)
    for label, value in figures.items():
        print(f"{label:45} {value:8.2f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
