"""A run on several ranks: what they compare before it starts, which run they go on with, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from insitu.core import arrays, tree, wire
from insitu.core.protocols import Led, Ranks, Session, Store
from insitu.core.types import Client, Population, Variables
from insitu.history import History
from insitu.rounds.outcome import Model
from insitu.rounds.plan import Plan

SAMPLED = 16
"""Clients whose examples are compared, spread evenly over the population; of the others number, ids and sizes are."""


def compare(ranks: Ranks, plan: Plan, clients: Population, start: Variables | None, record: Mapping[str, Any]) -> None:
    """Raises EngineError on every rank where their plans, data or versions differ: which rank, which field."""
    if ranks.world == 1:
        return
    fields = {f"plan.{name}": repr(value) for name, value in _flat(plan.config())}
    fields |= {name: str(record[name]) for name in ("seed", "rounds")}
    fields |= {f"version of {name}": value for name, value in record["versions"].items()}
    for path, leaf in tree.leaves({} if start is None else vars(start)):
        fields[f"parameter {path}"] = f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
    fields |= _data(clients)
    fields["the first parameters' values"] = record["digest"]
    ranks.agree(fields)


def unfinished(
    store: Store, launch: tuple[str, bool] | None, digest: str, replay: str | None
) -> tuple[str | None, str | None]:
    """The run of this plan that the same launch began, or None; and what is still to be replayed.

    One that is finished counts where this is a restart: a worker may die when there is nothing left to do. A replay
    goes on with a replay, of the run that its record names: by now ``replay`` may mean another, such as the last one.
    """
    if launch is None:
        return None, replay
    name, again = launch
    for row in store.runs():
        record = store.record(row["id"])
        ours = record.get("launch") == name and record["digest"] == digest
        ours = ours and ("replay" in record) == (replay is not None)
        if ours and (again or record["status"] != "finished"):
            return str(record["id"]), None
    return None, replay


def going_on(ranks: Ranks, model: Model, history: History) -> Model:
    """Rank 0's model, and its history so far, on every rank."""
    said = "learning where to go on"
    if not (version := ranks.first(model.version, said)):
        return model
    here = [model.state, model.stages, model.pending, list(history)] if ranks.rank == 0 else None
    state, stages, pending, rows = ranks.first(here, said)
    if ranks.rank:
        history.restore(rows)
    return Model(version, state, stages, pending)


def followed(session: Session, history: History, wanted: Callable[[], bool]) -> tuple[Model, str] | None:
    """The last model and the status of a run that another rank led and this one worked for; None where it leads."""
    last: Any = session.follow(wanted) if isinstance(session, Led) else None
    if last is None:
        return None
    version, state, stages, rows, status = last
    history.restore(rows)
    return Model(version, state, stages), status


def dismiss(session: Session, model: Model, status: str, history: History) -> None:
    """Tells the ranks that worked for this one how the run ended; they return what this one does."""
    if isinstance(session, Led):
        session.dismiss([model.version, model.state, model.stages, [dict(row) for row in history], status])


def _flat(config: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(config, Mapping):
        return [pair for key in config for pair in _flat(config[key], f"{path}.{key}" if path else str(key))]
    return [(path, config)]


def _data(clients: Population) -> dict[str, str]:
    n = len(clients)
    fields = {"the number of clients": str(n)}
    ids = blake2b(digest_size=16)
    for place in range(n):
        ids.update(f"{clients.id_at(place)}\x1f{clients.size_at(place)}\x1f".encode())
    fields["the clients' ids and sizes"] = ids.hexdigest()
    for place in sorted({int(place) for place in np.linspace(0, n - 1, min(n, SAMPLED))}):
        fields[f"the data of client {clients.id_at(place)!r}"] = _seen(clients, place)
    return fields


def _seen(clients: Population, place: int) -> str:
    """The digest of a client's data, or why it cannot be had here: a client that fails fails in its round."""
    try:
        return _digest(clients.at(place))
    except Exception as error:
        return f"not to be had ({type(error).__name__}: {error})"


def _digest(client: Client) -> str:
    held = client.holdout
    parts = {"x": client.data.x, "y": client.data.y, "held": None if held is None else {"x": held.x, "y": held.y}}
    return wire.digest(tree.map(lambda x: _plain(x), parts))


def _plain(leaf: Any) -> Any:
    """Objects (text labels) as text, since only numbers travel."""
    if leaf is None or arrays.is_torch(leaf):
        return leaf
    array = np.asarray(leaf)
    return array if array.dtype.kind in "biufc" else "\x1f".join(map(str, array.ravel().tolist()))
