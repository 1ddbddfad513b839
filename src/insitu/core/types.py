"""The values that travel between the floors. All are frozen; the trees inside them are not changed after they are made.

**Tree** (:mod:`insitu.core.tree`): a nested dict of arrays, NumPy or torch alike.
**Memory**: what a client keeps from one round to the next, ``{"algorithm": tree, "stages": {…}}`` or None.
**Metric sums**: ``{"examples": n, "loss": Σ loss, …}``: sums over examples, because sums add and means do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from insitu.core import tree
from insitu.core.errors import DataError
from insitu.core.tree import Tree

Kind = Literal["train", "evaluate", "predict"]


@dataclass(frozen=True)
class Variables:
    """A model's arrays by role.

    shared    travels, is averaged; what server optimisers, corrections, clipping and noise touch
    buffers   travel; plain mean, integers by maximum (batch-norm statistics)
    personal  stays in its client's memory: ``{"params": tree, "buffers": tree}``
    frozen    never stacked, sent or checkpointed
    """

    shared: Tree = field(default_factory=dict)
    buffers: Tree = field(default_factory=dict)
    personal: Tree = field(default_factory=dict)
    frozen: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """Examples: ``x`` an array [n, …] or a dict of such arrays, ``y`` an array [n, …] or None.

    ``rows`` [n] are the examples' numbers in the whole data set, which break ties between equal neighbours.
    """

    x: Any
    y: Any = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(tree.first_leaf(self.x))

    def take(self, index: Any) -> Data:
        """The examples at these positions (an index array, a mask or a slice)."""
        return Data(
            tree.map(lambda column: column[index], self.x),
            None if self.y is None else self.y[index],
            None if self.rows is None else self.rows[index],
        )


@dataclass(frozen=True)
class Client:
    """A place with data: its id, the examples it learns from, and those it holds out for evaluation."""

    id: str
    data: Data
    holdout: Data | None = None

    def __post_init__(self) -> None:
        if len(self.data) == 0:
            raise DataError(f"client {self.id!r} has no examples to learn from: leave it out, or give it some")


@dataclass(frozen=True)
class Schema:
    """What can be known of all clients' data together: enough to make a model of the right shape."""

    features: tuple[int, ...] | None = None
    """The shape of one example, where x is one array."""
    classes: np.ndarray | None = None
    """The sorted distinct labels, where labels are whole numbers or text."""


class Population(Protocol):
    """All clients that there are, by their place 0 … n-1; loaded when asked for."""

    def __len__(self) -> int: ...
    def id_at(self, place: int) -> str:
        """The id of the client at this place, without loading it."""
        ...

    def at(self, place: int) -> Client:
        """The client at this place, loaded."""
        ...

    def size_at(self, place: int) -> int | None:
        """How many examples it learns from, or None where that is not known without loading it."""
        ...

    def has_holdout(self) -> bool:
        """Whether clients hold examples out for evaluation."""
        ...

    def schema(self) -> Schema:
        """What is known of the data without loading more than one client."""
        ...


@runtime_checkable
class InOnePiece(Protocol):
    """A population whose data may lie in memory as one piece, so that engines can read many clients' rows at once."""

    def whole(self) -> Data | None:
        """All rows, of which a client's ``data.rows`` are its own; None where they are not in one piece."""
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """A population whose data are at other places: ``at`` raises DataError, and nobody looks at them from here."""

    def where(self) -> str:
        """Where they are, in words."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """A population that may load clients before they are asked for."""

    def ahead(self, places: Iterable[int]) -> None:
        """These places will be asked for, in this order, unless another call says otherwise; none: nobody will.

        It must not load anything before the first of them is asked for: where workers load, nobody asks here.
        """
        ...


@dataclass(frozen=True)
class Task:
    """What one client is asked.

    version  the number of rounds committed when the message was made
    index    the client's place in the cohort; blocks are cut and folded in this order
    place    the client's place in the population
    seed     the run's seed, from which every random choice is derived
    discount what a late answer's change is multiplied by (asynchronous methods)
    """

    run: str
    round: int
    version: int
    kind: Kind
    client: str
    message: Tree
    seed: int
    index: int = 0
    place: int = 0
    block: int = 0
    discount: float = 1.0


@dataclass(frozen=True)
class Update:
    """What one client tells: plain values, and the weight of each top-level part of them.

    ``value["shared"]`` counts ``weight["shared"]`` times in the mean, and so on for each part. ``metrics`` are sums.
    """

    value: dict[str, Any]
    weight: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What is kept of one client's answer after its value has been folded."""

    client: str
    index: int
    metrics: dict[str, float]
    bytes_up: int
    memory: Tree | None = None


@dataclass(frozen=True)
class Answer:
    """One client's update with the task it answers and the client's new memory.

    ``stored``: the update's arrays are :class:`~insitu.core.stored.Stored`, for a Reduce that adds such.
    ``late`` is what its change is multiplied by when it is folded in: in real time its age is known only then.
    """

    task: Task
    update: Update
    memory: Tree | None = None
    stored: bool = False
    late: float = 1.0

    def report(self) -> Report:
        """The answer without its value."""
        size = tree.nbytes(self.update.value)
        return Report(self.task.client, self.task.index, self.update.metrics, size, self.memory)


@dataclass(frozen=True)
class Folded:
    """Many answers of one block, folded where they were made: the Reduce's accumulator and a report a client."""

    block: int
    accumulator: Any
    reports: Sequence[Report]


@dataclass(frozen=True)
class Failure:
    """One client's work failed. A value, not an exception: the round goes on without it."""

    client: str
    index: int
    block: int
    error: str
    """``ErrorType: message``"""
    trace: str = ""


@dataclass(frozen=True)
class Total:
    """The reduced updates of a round.

    value       mean (or another reduction) of the parts; for a Reduce over neighbours, ``{node: value}``
    weight      total weight by part
    clients     how many updates are in it
    population  how many clients there are in all
    spare       whether nobody else needs the arrays, so that whoever takes them in may compute in their place
    """

    value: dict[str, Any]
    weight: dict[str, float]
    clients: int
    population: int
    spare: bool = False


@dataclass(frozen=True)
class Context:
    """What a Reduce or a Stage may know of the round."""

    round: int
    population: int
    cohort: Sequence[str] = ()
    seed: int = 0
    client: str = ""


@dataclass(frozen=True)
class ByClient:
    """A message for each client, where not all are asked the same (gossip gives every node its own)."""

    messages: Mapping[str, Tree]
    default: Tree

    def for_client(self, client: str) -> Tree:
        """The message for this client."""
        return self.messages.get(client, self.default)
