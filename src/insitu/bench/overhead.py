"""What a round costs beside training: ``insitu bench overhead``.

Three things: a round in which clients do nothing; what fold, events, store and progress take of a logistic
regression's round; evaluation beside a plain forward pass.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.bench import models, workload
from insitu.bench.workload import BATCH, LR, Workload
from insitu.core import events, tree
from insitu.core.types import Client, Data, Task, Update
from insitu.data.clients import Clients
from insitu.engines.vectorized.together import Together
from insitu.learners.torch import TorchLearner
from insitu.observe.lines import Lines
from insitu.rounds.fold import Fold
from insitu.rounds.server import Server
from insitu.run import _Loop
from insitu.store.sql import SqlStore

OTHERS: tuple[tuple[str, type, str], ...] = (
    ("fold", Together, "add_all"),
    ("merge", Fold, "take"),
    ("merge", Fold, "finish"),
    ("server's step", Server, "_told"),
    ("events and store", _Loop, "_emit"),
    ("checkpoint", SqlStore, "commit"),
)
"""Label, and a method whose CPU counts as its; of one that calls another of these, what is its own."""


@dataclass(frozen=True, kw_only=True)
class Idle(FedAvg):
    """Clients that answer at once that nothing has changed: what is left of a round is insitu's own."""

    def local(self, task: Task, client: Client, learner: Any, memory: Any) -> tuple[Update, Any]:
        if task.kind != "train":
            return super().local(task, client, learner, memory)
        examples = float(len(client.data))
        still = tree.map(torch.zeros_like, task.message["shared"])
        return Update({"shared": still}, {"shared": examples}, {"examples": examples, "loss": 0.0}), memory


def idle_round(data: Workload, rounds: int = 50) -> dict[str, float]:
    """Milliseconds of a round of clients that do nothing, the store and the default observer on."""
    marks: list[tuple[float, float]] = []

    def mark(event: events.Event) -> None:
        if isinstance(event, events.RoundCommitted):
            marks.append((time.perf_counter(), time.process_time()))

    _train(Idle(lr=LR, batch_size=BATCH), data, rounds, engine="inline", observers=[Lines(), mark])
    wall, cpu = np.diff(np.array(marks[2:]), axis=0).T * 1000
    return {"idle_wall_ms": float(np.median(wall)), "idle_cpu_ms": float(np.mean(cpu))}


def shares(data: Workload, rounds: int = 20) -> dict[str, float]:
    """What each of ``OTHERS`` takes of the CPU of rounds in lanes, and ``other threads`` (the store writes in one).

    From the end of the second round to the end of the last: starting is not in it, nor the last checkpoint.
    """
    marks: list[tuple[float, float]] = []

    def mark(event: events.Event) -> None:
        if isinstance(event, events.RoundCommitted):
            if event.round == 2:
                took.clear()
            marks.append((time.process_time(), time.thread_time()))

    with timed(OTHERS) as took:
        observers = [Lines(), mark]
        _train(FedAvg(lr=LR, batch_size=BATCH), data, rounds + 2, engine="vectorized", observers=observers)
        found = {label: took.get(label, 0.0) for label, *_ in OTHERS}
    whole, main = np.subtract(marks[-1], marks[1]).tolist()
    return {label: seconds / whole for label, seconds in found.items()} | {"other threads": (whole - main) / whole}


@contextmanager
def timed(methods: Iterable[tuple[str, type, str]]) -> Iterator[dict[str, float]]:
    """Meanwhile, the seconds of CPU of these methods by label, in the thread that calls them.

    A clock around each call, for a microsecond, where a profiler would count every call within.
    """
    took: dict[str, float] = {}
    inner: list[float] = []

    def around(label: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            began = time.thread_time()
            inner.append(0.0)
            try:
                return method(*args, **options)
            finally:
                seconds = time.thread_time() - began
                took[label] = took.get(label, 0.0) + seconds - inner.pop()
                if inner:
                    inner[-1] += seconds

        return call

    methods = list(methods)
    before = [getattr(owner, name) for _, owner, name in methods]
    for (label, owner, name), method in zip(methods, before, strict=True):
        setattr(owner, name, around(label, method))
    try:
        yield took
    finally:
        for (_, owner, name), method in zip(methods, before, strict=True):
            setattr(owner, name, method)


def evaluation(name: str, examples: int = 20_000, times: int = 5) -> float:
    """CPU of insitu's evaluation over that of a plain forward pass in batches of 1024, loss and accuracy in both."""
    data = workload.features(400)
    x, y = data.x[:examples], data.y[:examples]
    learner = TorchLearner(models.make(name))
    variables, held = learner.init(0), Data(x, y)
    module = models.make(name).eval()
    columns = torch.from_numpy(x), torch.from_numpy(y)

    def plain() -> None:
        with torch.no_grad():
            for part, labels in zip(columns[0].split(1024), columns[1].split(1024), strict=True):
                output = module(part)
                cross_entropy(output, labels, reduction="sum").item()
                (output.argmax(1) == labels).sum().item()

    def ours() -> None:
        learner.evaluate(variables, held)

    pairs = [_cpu(ours) / max(_cpu(plain), 1e-9) for _ in range(times + 1)]
    return statistics.median(pairs[1:])


def overhead(clients: int | None = None, rounds: int = 30) -> dict[str, Any]:
    """All three."""
    data = workload.features(clients or workload.CLIENTS, min(workload.COHORT, clients or workload.COHORT))
    return {
        "cohort": data.cohort,
        **idle_round(data, max(4, rounds)),
        "shares": shares(data, rounds),
        "evaluation": {name: evaluation(name) for name in ("lr", "mlp")},
    }


def text(result: dict[str, Any]) -> str:
    """The result in words and figures."""
    found = result["shares"]
    named = ", ".join(f"{label} {100 * share:.1f} %" for label, share in found.items())
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["evaluation"].items())
    return "\n".join([
        f"a round of {result['cohort']} clients that do nothing, store on:"
        f" {result['idle_wall_ms']:.2f} ms wall, {result['idle_cpu_ms']:.2f} ms CPU",
        f"of the CPU of a logistic regression's round: {named}",
        f"evaluation, CPU over a plain forward pass: {ratios}",
    ])  # fmt: skip


def _train(algorithm: FedAvg, data: Workload, rounds: int, *, engine: str, observers: Any) -> None:
    plan = insitu.Plan(
        algorithm, learner=TorchLearner(models.make("lr")), cohort=insitu.Uniform(data.cohort), evaluate_every=0
    )
    clients = Clients.from_arrays(data.x, data.y, data.parts())
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "insitu.db"
        insitu.run(plan, clients, rounds=rounds, engine=engine, store=store, observers=observers)


def _cpu(call: Callable[[], None]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.process_time()
    call()
    torch.set_num_threads(threads)
    return time.process_time() - began
