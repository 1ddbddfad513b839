"""What is given to a run, checked before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core import checks, spans, tree
from insitu.core.errors import DataError, PlanError
from insitu.core.events import Event
from insitu.core.protocols import Answering, Engine, Store
from insitu.core.types import Client, Data, Elsewhere, LooksAhead, Population
from insitu.names import find
from insitu.rounds.plan import Plan


def check_arguments(plan: Any, clients: Any, rounds: Any, seed: Any) -> None:
    """Raises PlanError where one is not what it should be."""
    if not isinstance(plan, Plan):
        raise PlanError(f"{plan!r} is not a plan: give insitu.Plan(FedAvg(…), learner=…)")
    if not hasattr(clients, "at"):
        raise PlanError(
            f"clients={type(clients).__name__} are not clients: make them with Clients.from_arrays(x, y, …)"
        )
    checks.count(rounds=rounds)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise PlanError(f"Expected seed={seed!r} to be a whole number")


def evaluation_data(plan: Plan, evaluate: Any) -> Data | None:
    """The central test set (x, y), x alone, or Data: NumPy, finite, and fit for the learner."""
    if evaluate is None:
        return None
    data = (
        evaluate if isinstance(evaluate, Data) else Data(*evaluate) if isinstance(evaluate, tuple) else Data(evaluate)
    )
    data = Data(tree.asnumpy(data.x), None if data.y is None else np.asarray(data.y))
    if data.y is not None and len(data.y) != len(data):
        raise DataError(f"evaluate: x has {len(data)} examples and y {len(data.y)}: give one y an example")
    if len(data) == 0:
        raise DataError("evaluate: the test set is empty: give at least one example, or None")
    for name, column in (("x", data.x), ("y", {} if data.y is None else data.y)):
        if data.y is not None and name == "y" and not np.issubdtype(data.y.dtype, np.floating):
            continue
        if (path := tree.not_finite({name: column})) is not None:
            raise DataError(f"evaluate: {path} of the test set holds NaN or Inf: impute or drop these examples")
    if data.y is None and isinstance(plan.algorithm, Answering):
        raise DataError("evaluate: predictions are compared with labels: give evaluate=(x, y)")
    if plan.learner is not None:
        plan.learner.check(Client("the central test set", data, data))
    return data


def check_clients(plan: Plan, clients: Population, seed: int) -> None:
    """Raises what is wrong with the first cohort's size or the first client's data, before anything is started."""
    if len(clients) == 0:
        raise DataError("there are no clients: give at least one")
    plan.cohort.sample(len(clients), seed, 1)  # a cohort larger than the population says so here
    if plan.learner is not None and not isinstance(clients, Elsewhere):
        plan.learner.check(clients.at(0))


def chosen_engine(engine: Any, plan: Plan, clients: int, record: dict[str, Any] | None) -> Engine:
    """The engine given by name or as an object; that of the record on resuming; or the fastest."""
    if engine is None and record is not None:
        settings = {k: v for k, v in record["engine"].items() if k != "name"}
        engine = find("engines", record["engine"]["name"])(**settings)
    if engine is None:
        engine = find("engines", "auto")()
    if isinstance(engine, str):
        engine = find("engines", engine)()
    if not isinstance(engine, Engine):
        raise PlanError(
            f"engine={engine!r} is not an engine: give 'auto', 'inline', 'vectorized', 'processes', 'spmd', or Inline()"
        )
    if (reason := engine.refuses(plan)) is not None:
        raise PlanError(f"engine {engine.part_name()!r} cannot run this plan: {reason}")
    return engine


@contextmanager
def opened_store(store: Any) -> Iterator[Store | None]:
    """A store out of a path or URL, closed at the end; a Store that was given stays open."""
    if store is None or not isinstance(store, (str, Path)):
        yield store
        return
    with spans.span("start", "open the store"):
        from insitu.store.opened import open_store

        file = open_store(store)
    with closing(file) as opened:
        yield opened


@contextmanager
def reading(clients: Population) -> Iterator[None]:
    """A run's time: when it ends, however it does, nobody is read ahead any more."""
    try:
        yield
    finally:
        if isinstance(clients, LooksAhead):
            clients.ahead(())


def usual_observers() -> list[Callable[[Event], None]]:
    """A few lines on stderr."""
    from insitu.observe.lines import Lines

    return [Lines()]
