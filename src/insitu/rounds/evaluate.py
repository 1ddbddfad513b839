"""Measuring the model: on a central test set, and on the parts that clients hold out. The same path as training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from insitu.core import seeds
from insitu.core.descent import Descent
from insitu.core.errors import DataError
from insitu.core.protocols import Answering, EvaluatesMany, Setting
from insitu.core.types import Answer, Client, Context, Data, Failure, Report, Task, Update, Variables
from insitu.rounds.client import failure, work
from insitu.rounds.outcome import Model
from insitu.rounds.plan import Plan
from insitu.rounds.server import Server


def means(sums: dict[str, float]) -> dict[str, float]:
    """Metric sums as means over examples, without the count itself."""
    n = sums.get("examples", 0.0)
    return {name: value / n for name, value in sums.items() if name != "examples"} if n else {}


def rows(reports: list[Report]) -> tuple[list[str], list[list[Any]]]:
    """The metrics' names and a row a client, as an ``UpdatesArrived`` event holds them."""
    names = list(dict.fromkeys(name for report in reports for name in report.metrics if name != "examples"))
    found = []
    for report in reports:
        sums = report.metrics
        n = sums.get("examples", 0.0)
        means = [sums[name] / n if n and name in sums else math.nan for name in names]
        found.append([report.client, n, report.bytes_up, *means])
    return names, found


def pooled(reports: list[Report]) -> dict[str, float]:
    """Metrics over the examples of all clients together."""
    sums: dict[str, float] = {}
    for report in reports:
        for name, value in report.metrics.items():
            sums[name] = sums.get(name, 0.0) + value
    return means(sums)


def message(server: Server, model: Model) -> dict[str, Any]:
    """What an evaluation task carries."""
    algorithm = server.plan.algorithm
    if server.plan.learner is None:
        told = algorithm.ask(model.state, model.version)
        assert isinstance(told, dict)
        return told
    variables = algorithm.params(model.state)
    return {"shared": variables.shared, "buffers": variables.buffers}


def central(server: Server, model: Model, data: Data) -> dict[str, float]:
    """Metrics of the model on a central test set."""
    if isinstance(server.plan.algorithm, Answering):
        return {"accuracy": float(np.mean(predict(server, model, data.x) == data.y))}
    client = Client("central test set", data, data)
    task = Task(server.run, model.version, model.version, "evaluate", client.id, message(server, model), server.seed)
    return means(work(server.plan, task, client, None).update.metrics)


def predict(server: Server, model: Model, x: Any) -> Any:
    """Predictions [n] of a method whose model is its clients: all of them are asked."""
    algorithm = server.plan.algorithm
    assert isinstance(algorithm, Answering)
    fold = server.ask_all("predict", algorithm.query(model.state, x), range(len(server.clients)), model.version)
    if fold.failures:
        raise DataError(f"client {fold.failures[0].client!r} could not answer: {fold.failures[0].error}")
    context = Context(model.version, len(server.clients))
    return algorithm.read(model.state, server.plan.reduce.finish(fold.finish(), context))


def federated(server: Server, model: Model) -> tuple[dict[str, float], dict[str, dict[str, float]], list[Failure]]:
    """Metrics over all held-out examples, the metrics by client, and the failures."""
    cohort, n = server.plan.evaluate_cohort, len(server.clients)
    places = (
        range(n) if cohort is None else cohort.sample(n, seeds.seed(server.seed, 0, "", "evaluation"), model.version)
    )
    fold = server.ask_all("evaluate", message(server, model), places, model.version)
    by_client = {report.client: means(report.metrics) for report in fold.reports}
    return pooled(fold.reports), {c: m for c, m in by_client.items() if m}, fold.failures


def evaluate_block(setting: Setting, tasks: Sequence[Task]) -> list[Answer | Failure]:
    """Answers to evaluation tasks, in their order: in one go where all clients measure the same model.

    What engines that take tasks block by block call. The sums are those of ``work`` but for rounding; a client whose
    data cannot be had, or cannot stand beside the others', is measured alone or fails alone.
    """
    plan = setting.plan
    told: dict[int, Answer | Failure] = {}
    waiting: list[tuple[Task, Client]] = []
    for task in tasks:
        try:
            waiting.append((task, setting.clients.at(task.place)))
        except Exception as error:
            told[task.index] = failure(task, error)
    if _one_model(plan, tasks):
        held = [(task, client.holdout) for task, client in waiting if client.holdout is not None]
        message, start = tasks[0].message, plan.learner.init(tasks[0].seed)
        variables = Variables(message["shared"], message["buffers"], frozen=start.frozen)
        with suppress(Exception):  # one client's data may spoil a pass: then each is asked by itself, below
            sums = plan.learner.evaluate_many(variables, [holdout for _, holdout in held])
            for (task, _), own in zip(held, sums, strict=True):
                told[task.index] = Answer(task, Update({}, {}, own))
    for task, client in waiting:
        if task.index not in told:
            try:
                told[task.index] = work(plan, task, client, setting.memories.get(task.client))
            except Exception as error:
                told[task.index] = failure(task, error)
    return [told[task.index] for task in tasks]


def _one_model(plan: Plan, tasks: Sequence[Task]) -> bool:
    """Whether these tasks ask for the sums of one model: no node's own, nothing personal, no measure of a method's."""
    return (
        isinstance(plan.algorithm, Descent)
        and type(plan.algorithm).measure is Descent.measure
        and isinstance(plan.learner, EvaluatesMany)
        and not plan.learner.init(tasks[0].seed).personal
        and all(task.message is tasks[0].message for task in tasks)
    )


def spread(by_client: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """For each metric over clients: mean, mean of the worst tenth, percentiles 10, 50 and 90.

    The worst are the largest of losses and errors, and the smallest of everything else.
    """
    result = {}
    for name in {name: None for metrics in by_client.values() for name in metrics}:
        values = np.array([metrics[name] for metrics in by_client.values() if name in metrics])
        worst = np.sort(values)[:: -1 if is_error(name) else 1][: max(1, round(len(values) / 10))]
        low, middle, high = np.percentile(values, [10, 50, 90])
        result[name] = {
            "mean": float(values.mean()),
            "worst10": float(worst.mean()),
            "p10": float(low),
            "p50": float(middle),
            "p90": float(high),
        }
    return result


def is_error(name: str) -> bool:
    """Whether a metric is the better the smaller it is, as its name says: loss, mae, mse, …_error."""
    return name in ("loss", "mae", "mse", "rmse", "perplexity") or name.endswith(("loss", "error"))
