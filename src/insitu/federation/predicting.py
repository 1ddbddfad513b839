"""Predictions of a run's model: by the coordinator, or, where the model is its clients (knn), by all sites together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from insitu.core import wire
from insitu.core.errors import DataError, InsituError, Refusal, WireError
from insitu.core.federation import Submitted
from insitu.core.protocols import Answering, Checkpoint, Store
from insitu.core.types import Population
from insitu.federation import tables
from insitu.history import History
from insitu.result import Result
from insitu.rounds.memory import Memories, usual_budget


def predicted(
    run: Submitted, checkpoint: Checkpoint | None, population: Population, engine: Any, code: Path, body: bytes
) -> bytes:
    """The predictions for the examples in ``body``, both as ``core/wire`` bytes: ``{"x": …}`` and ``{"y": …}``.

    Raises Refusal: BAD_STATE without a model, or where sites do not answer; BAD_REQUEST for examples that are none.
    """
    if checkpoint is None:
        raise Refusal("BAD_STATE", f"run {run.run} has no model yet, as no round is committed")
    config = tables.submitted(run.tables, run.run, code)
    plan = config.plan().resolve(population.schema())
    if isinstance(plan.algorithm, Answering) and run.status != "finished":
        raise Refusal("BAD_STATE", f"run {run.run} is {run.status}: its sites answer when it is finished")
    x = examples(body)
    result = Result(
        run.run, run.status, checkpoint.round, History(), {}, plan, config.run.seed, checkpoint.state,
        Memories(None, usual_budget()), population, engine,
    )  # fmt: skip
    try:
        return wire.encode({"y": _plain(np.asarray(result.predict(x)))})
    except DataError as error:
        asked = isinstance(plan.algorithm, Answering)  # then it is a site's, and not the examples'
        raise Refusal("BAD_STATE" if asked else "BAD_REQUEST", str(error)) from error
    except (InsituError, ValueError, IndexError, TypeError) as error:
        raise Refusal("BAD_REQUEST", f"x of shape {x.shape} cannot be predicted: {error}") from error


def variables(run: Submitted, store: Store, code: Path) -> bytes:
    """The variables after the last committed round, as ``core/wire`` bytes. Raises Refusal BAD_STATE without any."""
    try:
        checkpoint = store.load(run.run)
    except InsituError as error:
        raise Refusal("BAD_STATE", f"run {run.run} has no model yet: {error}") from error
    if checkpoint is None:
        raise Refusal("BAD_STATE", f"run {run.run} has no model yet, as no round is committed")
    plan = tables.submitted(run.tables, run.run, code).plan()
    return wire.encode(vars(plan.algorithm.params(checkpoint.state)))


def examples(body: bytes) -> np.ndarray:
    """The array ``x`` [n, …], finite. Raises Refusal BAD_REQUEST."""
    try:
        told = wire.decode(body)
        x = np.asarray(told["x"])
    except (WireError, KeyError, TypeError, IndexError) as error:
        raise Refusal("BAD_REQUEST", f"the body is no tree with an array x: {error}") from error
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not len(x):
        raise Refusal("BAD_REQUEST", f"x is {x.dtype} of shape {x.shape}: give numbers, one example a row")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise Refusal("BAD_REQUEST", "x holds NaN or Inf: impute or drop these examples")
    return x


def _plain(y: np.ndarray) -> Any:
    """Numbers as they are; labels that are text as a list, which the wire can carry."""
    return y if y.dtype.kind in "biuf" else [str(one) for one in y.tolist()]
