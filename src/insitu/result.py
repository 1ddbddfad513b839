"""Result: what a run leaves."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from insitu.core import tree
from insitu.core.errors import PlanError
from insitu.core.protocols import Answering, Engine, Setting
from insitu.core.types import Variables
from insitu.history import History
from insitu.rounds.evaluate import predict
from insitu.rounds.memory import Memories
from insitu.rounds.outcome import Model
from insitu.rounds.plan import Plan
from insitu.rounds.server import Server


@dataclass(frozen=True)
class Result:
    """One run, finished or stopped.

    id       what ``resume=`` takes
    status   "finished", or "stopped" (by Ctrl-C, after a whole round)
    rounds   committed rounds
    history  one row a round (:class:`~insitu.history.History`)
    choices  the engine and what it chose: lanes, compilation, workers, versions
    """

    id: str
    status: str
    rounds: int
    history: History
    choices: dict[str, Any]
    plan: Plan
    seed: int
    state: Any = field(repr=False)
    memories: Memories = field(repr=False)
    clients: Any = field(repr=False)
    engine: Engine = field(repr=False)

    @property
    def variables(self) -> Variables:
        """The trained variables by role; what is personal to a client is in its memory."""
        variables = self.plan.algorithm.params(self.state)
        if self.plan.learner is None:
            return variables
        return replace(variables, frozen=self.plan.learner.init(self.seed).frozen)

    @property
    def params(self) -> dict[str, Any]:
        """The trained shared parameters by name, as NumPy arrays."""
        return dict(tree.asnumpy(self.variables.shared))

    def model(self, client: str | None = None) -> Any:
        """A trained model of the kind that was given: a module, an estimator, an object with ``predict``.

        ``client``: with this client's personal variables, where the learner has any.
        """
        if isinstance(self.plan.algorithm, Answering):
            return AskedModel(self)
        if self.plan.learner is None:
            return self.plan.algorithm.model(self.state)
        return self.plan.learner.model(self._of(client))

    def predict(self, x: Any, client: str | None = None) -> Any:
        """Predictions [n] for examples x [n, …]."""
        if isinstance(self.plan.algorithm, Answering) or self.plan.learner is None:
            return self.model().predict(x)
        return self.plan.learner.predict(self._of(client), x)

    def plot(self, path: str | Path | None = None) -> Any:
        """The history as a picture: metrics and bytes against rounds. Returns the figure; writes it to ``path``."""
        from insitu.report.curves import plot_history

        return plot_history(self.history, path, title=f"{self.plan.algorithm.part_name()} · {self.id}")

    def _of(self, client: str | None) -> Variables:
        if client is None:
            return replace(self.variables, personal=self.plan.learner.init(self.seed).personal)
        memory = self.memories.get(client)
        if memory is None:
            raise PlanError(f"client {client!r} has no memory in this run: it never took part, or nothing is personal")
        personal = memory.get("algorithm", {}).get("personal", {})
        return replace(self.variables, personal=personal)


@dataclass(frozen=True)
class AskedModel:
    """A model whose predictions are asked from the clients (nearest neighbours)."""

    result: Result

    def predict(self, x: Any) -> Any:
        """Predictions [n]: every client answers for all of x [n, d]."""
        result = self.result
        setting = Setting(
            result.plan, result.clients, result.memories, result.rounds, result.seed, committed=result.rounds
        )
        with closing(result.engine.open(setting)) as session:
            server = Server(result.id, result.plan, session, result.clients, result.memories, result.seed)
            return predict(server, Model(result.rounds, result.state), x)
