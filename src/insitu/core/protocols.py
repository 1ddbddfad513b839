"""The interfaces; larger because all of them stand on one page.

Rooms on floor 1 implement them; floors 2 and 3 know nothing else of floor 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from insitu.core.errors import UpdateError
from insitu.core.events import Event
from insitu.core.part import Part
from insitu.core.tree import Tree
from insitu.core.types import (
    Answer,
    ByClient,
    Client,
    Context,
    Data,
    Failure,
    Folded,
    Population,
    Schema,
    Task,
    Total,
    Update,
    Variables,
)

State = Any
"""An algorithm's state on the server: a tree, so that it can be written to the store as it is."""

Batch = Mapping[str, Any]
"""``x`` [B, …], ``y`` [B, …], ``weight`` [B] (0 for padding), ``seed`` (a whole number without dimensions)."""


class Algorithm(Part, ABC):
    """Passive and pure: never calls an engine, a sampler, a logger or a clock; holds no mutable state."""

    limit: ClassVar[str | None] = None
    """The limit case, in words that the contract test knows (``"mu=0 is fedavg"``), or None."""
    learner_needed: ClassVar[Literal["gradient", "any", "none"]] = "gradient"
    tells_changes: ClassVar[bool] = False
    """Whether the update's ``shared`` part is a change or a gradient, which a late answer's age may scale down."""
    needs_everyone: ClassVar[bool] = False
    """Whether clients keep what a newcomer could not know, so that the cohort must be everyone in every round."""

    retells: ClassVar[bool] = False
    """Whether what a stage leaves out of ``shared`` is in the client's next update by itself, as that is a difference
    to what others know of it; a stage's error feedback would tell it twice."""
    tells_parts: ClassVar[bool] = False
    """Whether the update is another part of the model in each round, so that what one left out is not in the next."""

    @abstractmethod
    def init(self, start: Variables | None) -> State:
        """The state before the first round, from the learner's variables (None where there is no learner)."""

    @abstractmethod
    def ask(self, state: State, round: int) -> Tree | ByClient:
        """What clients need to know this round, the round's learning rate included."""

    @abstractmethod
    def local(self, task: Task, client: Client, learner: Any, memory: Tree | None) -> tuple[Update, Tree | None]:
        """One client's work for one task of any kind; returns what it tells and its new memory."""

    @abstractmethod
    def tell(self, state: State, total: Total, round: int) -> State:
        """The state after the round."""

    @abstractmethod
    def params(self, state: State) -> Variables:
        """What evaluation and ``result.model()`` see."""

    @abstractmethod
    def reduce(self) -> Reduce:
        """How updates become a total unless the plan says otherwise."""

    @classmethod
    @abstractmethod
    def example(cls) -> Algorithm:
        """A small instance, with which the contract tests run."""

    def refuses(self, reduce: Reduce) -> str | None:
        """Why this instance cannot work with this Reduce, with the cure; None where it can."""
        usual = self.reduce()
        if usual.gives == reduce.gives:
            return None
        return (
            f"{type(self).__name__} needs {usual.gives}, and reduce={reduce.part_name()!r} gives {reduce.gives}: leave"
            " reduce out" + (", or use Gossip, which has no server" if reduce.gives == "a total a node" else "")
        )

    def measures(self, state: State) -> dict[str, float]:
        """What is worth a column in the history beside losses: the nodes' disagreement, the inertia."""
        return {}

    def model(self, state: State) -> Any:
        """A model out of the state, for methods that need no learner."""
        return self.params(state)


@runtime_checkable
class Answering(Protocol):
    """An algorithm whose model is its clients: predictions are asked from them (nearest neighbours)."""

    def query(self, state: State, x: Any) -> Tree:
        """The message of a ``predict`` task for these examples."""
        ...

    def read(self, state: State, total: Total) -> Any:
        """The predictions [n] out of the clients' reduced answers."""
        ...


@runtime_checkable
class Stepwise(Protocol):
    """An algorithm whose round is several steps: each is asked, worked on, reduced and taken in before the next."""

    def steps_a_round(self) -> int:
        """How many."""
        ...

    def examples(self, step: int, n: int, seed: int) -> Any:
        """Numbers [b] of the examples of a step, counted from the run's first, among all clients' n examples."""
        ...

    def ask_step(self, state: State, round: int, parts: Mapping[int, Any]) -> dict[int, Tree]:
        """The message to each place whose client has examples in this step; ``parts`` are their positions there."""
        ...


@dataclass(frozen=True)
class Steps:
    """What a session made of a round's steps: the new state and a report a worker; or why the round is void."""

    state: State
    reports: Sequence[Any]
    trouble: str = ""


@runtime_checkable
class TakesSteps(Protocol):
    """A session that takes all steps of a :class:`Stepwise` algorithm's round by itself, where it can."""

    def take_steps(self, state: State, round: int, first: int) -> Steps | None:
        """The round's steps, the first of them number ``first`` of the run; None where it cannot."""
        ...


class Learner(Protocol):
    """What every learner can do. ``init`` is cheap when called again with the same seed."""

    metric_names: tuple[str, ...]
    """The names in metric sums beside ``examples``; the first is ``loss`` where there is one."""

    def config(self) -> dict[str, Any]:
        """Plain data for the record and the digest."""
        ...

    def resolve(self, schema: Schema) -> Learner:
        """This learner with what it left open (classes, features) filled in from the data."""
        ...

    def init(self, seed: int) -> Variables:
        """The variables before training."""
        ...

    def check(self, client: Client) -> None:
        """Raises DataError where this client's data cannot be learnt from (labels out of range, wrong shape)."""
        ...

    def evaluate(self, variables: Variables, data: Data) -> dict[str, float]:
        """Metric sums over all examples, the model in evaluation mode."""
        ...

    def predict(self, variables: Variables, x: Any) -> Any:
        """The model's outputs for ``x``: class labels for classifiers, values otherwise. NumPy [n, …]."""
        ...

    def model(self, variables: Variables) -> Any:
        """A trained model of the kind that the user gave, in its own right."""
        ...


@runtime_checkable
class GradientLearner(Learner, Protocol):
    """Turns (variables, a batch) into a gradient; losses are per example, so that padding can weigh nothing."""

    mixes: bool
    """Whether examples of a batch influence each other (batch norm in training): then no padding, no batch of one."""

    def gradient(
        self, variables: Variables, batch: Batch, step: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """``(grads, state, sums)`` of the weighted mean loss over the batch.

        grads   {"shared": …, "personal": …} as ``variables.shared`` and ``variables.personal["params"]``
        state   {"buffers": …, "personal": …} as ``variables.buffers`` and ``variables.personal["buffers"]``
        sums    {"examples": Σ weight, "loss": Σ weight·loss, …}, arrays without dimensions
        ``step`` is the number of steps done in this task (an array without dimensions): dropout draws from it.
        """
        ...

    def batch(self, data: Data, index: Any) -> dict[str, Any]:
        """The columns ``x`` and ``y`` of these examples, as arrays that ``gradient`` takes."""
        ...


@runtime_checkable
class EvaluatesMany(Learner, Protocol):
    """A learner that measures one model on many clients' examples at once."""

    def evaluate_many(self, variables: Variables, parts: Sequence[Data]) -> list[dict[str, float]]:
        """``evaluate`` of each part, equal to it but for rounding."""
        ...


class StackedGradient(Protocol):
    """A learner's gradient for K clients at once: K stands in front of every shape, what is frozen is not stacked."""

    def gradient(
        self, variables: Variables, batch: Batch, step: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """As :meth:`GradientLearner.gradient`: batch ``x`` [K, B, …], ``weight`` [K, B], ``seed`` and ``step`` [K].

        The batch has ``share`` [K, B] as well: an example's share in the mean of its client's batch.
        """
        ...

    def descend(self, variables: Variables, batch: Batch, step: Any, lr: float) -> dict[str, Any]:
        """w ← w − lr·g in place for all that is trained; the metric sums [K]. Raises before anything is changed."""
        ...

    def descend_all(
        self, variables: Variables, batch: Batch, counts: Sequence[int], step: Any, lr: float
    ) -> dict[str, Any]:
        """:meth:`descend` for a stretch of steps: in step t the first ``counts[t]`` lanes are at work, never more.

        batch columns [R, B, …], R = Σ counts, step after step; ``seed`` and ``step`` [K] are the lanes' and ``step``
        is moved on. Returns the metric sums of every client-step [R], which hold until the next call.
        """
        ...

    def steady(self, x: Any) -> bool:
        """Whether ``descend_all`` is faster where all steps have all lanes, those that are done weighing nothing.

        ``x`` [1, B, …] are examples, on the device that is meant.
        """
        ...

    def said(self) -> list[str]:
        """What users should know and were not told yet, such as a faster way that turned out to be closed."""
        ...


@runtime_checkable
class Stackable(Protocol):
    """What a learner may offer beside ``gradient``, for engines that advance many clients at once."""

    def stacked(self) -> StackedGradient | str:
        """The gradient of many clients, or why this model has none; the engine tries it before it trusts it."""
        ...

    def mapped(self) -> GradientLearner:
        """The learner with a ``gradient`` that ``torch.func.vmap`` can be applied to."""
        ...


@runtime_checkable
class Differentiable(Protocol):
    """What a learner may offer engines that differentiate by themselves, across several processes."""

    def trainable(self) -> Any:
        """A ``torch.nn.Module`` with the model's parameters under their names, or text: why there is none.

        ``module(x, y, scale, weight)`` gives ``scale`` times the weighted sum of the losses, and the metric sums as of
        :meth:`GradientLearner.gradient`.
        """
        ...


@runtime_checkable
class FitLearner(Learner, Protocol):
    """A black box: turns (variables, data) into fitted variables."""

    def fit(
        self, variables: Variables, data: Data, *, epochs: int, batch_size: int | None, seed: int
    ) -> tuple[Variables, dict[str, float]]:
        """The variables after local training, and metric sums."""
        ...


class Stage(Part, ABC):
    """Something done to an update on both sides, one object with a client half and a server half."""

    decodes: ClassVar[Literal["nothing", "each", "sum"]] = "nothing"
    """What the server half undoes: nothing, each update before it is folded, or only the sum of all."""
    changes_only: ClassVar[bool] = False
    """Whether it makes sense for changes of a model only, and not for parameters that travel as they are."""

    def init(self) -> Tree | None:
        """The server half's state before the first round."""
        return None

    def refuses(self, algorithm: Algorithm, learner: Any, before: Sequence[Stage]) -> str | None:
        """Why this instance cannot work in such a plan after these stages, with the cure; None where it can."""
        return None

    @abstractmethod
    def encode(self, update: Update, memory: Tree | None, context: Context) -> tuple[Update, Tree | None]:
        """Client half. The update's values are plain: their weights have not been multiplied in."""

    def decode_each(self, update: Update, context: Context) -> Update:
        """Server half for one update, before it is folded (``decodes = "each"``)."""
        return update

    def decode(self, total: Total, state: Tree | None, context: Context) -> tuple[Total, Tree | None]:
        """Server half for the total; stages are undone in reverse order."""
        return total, state


class Reduce(Part, ABC):
    """How updates become a total. ``add`` and ``merge`` may change their first argument, which they own."""

    needs: ClassVar[Literal["stream", "each"]] = "stream"
    """``stream``: an accumulator of constant size; ``each``: it keeps every update."""
    gives: ClassVar[str] = "one mean"
    """What comes out, in the words of the algorithms that need it."""

    @abstractmethod
    def zero(self) -> Any:
        """An empty accumulator."""

    @abstractmethod
    def add(self, accumulator: Any, update: Update, client: str) -> Any:
        """The accumulator with one more update."""

    @abstractmethod
    def merge(self, accumulator: Any, other: Any) -> Any:
        """Two accumulators as one; ``other`` comes later in the cohort's order."""

    @abstractmethod
    def finish(self, accumulator: Any, context: Context) -> Total:
        """The total of everything added, once; it may take the accumulator's arrays.

        Raises nothing for a part that nobody told: it is left out.
        """

    def adds_stored(self) -> bool:
        """Whether there is an ``add_stored``."""
        return False

    def add_stored(self, accumulator: Any, block: Sequence[tuple[Update, str]]) -> tuple[Any, dict[str, UpdateError]]:
        """The accumulator with a block of (update, client) merged in; leaves are :class:`~insitu.core.stored.Stored`.

        The same bits as ``add`` for each of them and ``merge`` give, without any update in memory as a whole. Also
        who was refused, and why.
        """
        raise TypeError(f"{self.part_name()} adds no updates that are stored: see adds_stored")


@dataclass(frozen=True)
class Setting:
    """What an engine gets to work with for one run. ``choices`` are those recorded with a run that is resumed."""

    plan: Any
    clients: Population
    memories: Mapping[str, Tree | None]
    rounds: int
    seed: int
    choices: Mapping[str, Any] = field(default_factory=dict)
    notify: Callable[[str], None] = print
    """Tells the user a sentence: a choice made, a slower path taken."""
    stored: bool = False
    """Whether there is a store, which wants every client's memory where it is kept."""
    committed: int = 0
    """Rounds that are committed already."""


class Session(Protocol):
    """An engine at work on one run."""

    choices: dict[str, Any]
    """What was chosen, given or measured (lanes, compilation, workers, versions): recorded, reused on resuming."""

    def run(self, work: Iterable[Task]) -> Iterator[Answer | Folded | Failure]:
        """Works the tasks off, pulling them when there is room. Closing the iterator cancels what is outstanding."""
        ...

    def close(self) -> None:
        """Ends everything that ``open`` started."""
        ...


@runtime_checkable
class Asynchronous(Protocol):
    """A session whose clients can work at their own pace, in real time, beside calls of ``run``.

    What a client computes is what ``inline`` computes, so that the record of who arrived when says all there is to say.
    """

    @property
    def seats(self) -> int:
        """Clients that can be at work at the same time; those that are started beyond wait for a seat."""
        ...

    def start(self, task: Task) -> None:
        """The task's client is to set to work; returns before it has done it. No other at work has this ``index``."""
        ...

    def arrived(self) -> Answer | Failure:
        """What the next client to finish tells, whichever that is; waits for it. Everyone started arrives once."""
        ...


@runtime_checkable
class Led(Protocol):
    """A session of several processes of which, for some plans, one leads the run and the others only work for it."""

    def follow(self, wanted: Callable[[], bool]) -> Tree | None:
        """Works until the leader ends the run, and returns what it says then; None where this process is not led.

        ``wanted`` says whether somebody here wants the run to stop, which the leader is told with the next answer.
        """
        ...

    def dismiss(self, last: Tree) -> None:
        """The leader's last word, which the others' ``follow`` returns; nothing where nobody is led."""
        ...


@runtime_checkable
class Waits(Protocol):
    """A session that waits for clients of their own will, judges by the plan's policy when a call of ``run`` is
    complete, and keeps what they told: a federation's."""

    def expect(self, wanted: int) -> None:
        """So many answers make the next call of ``run`` complete; without a word, all that are asked."""
        ...

    def clock(self) -> float:
        """Seconds on the clock by which the server's policy judges again what this session has judged."""
        ...

    def seal(self, round: int, counted: Collection[str]) -> Sequence[Sequence[str]]:
        """The round will be committed: [client, digest of its update's manifest] for each that ``counted``."""
        ...


@runtime_checkable
class Rests(Protocol):
    """A session whose rounds last so long that the model need not be in memory meanwhile."""

    def rested(self, state: Any) -> Any:
        """The same state, its large arrays where they take no memory until somebody looks at them."""
        ...


class Ranks(Protocol):
    """Processes that run one run together, seen from one of them. All call the same methods in the same order."""

    rank: int
    world: int

    def clock(self) -> float:
        """Seconds on a clock that says the same on every rank."""
        ...

    def launch(self) -> tuple[str, bool] | None:
        """What started the processes, the same after a restart, and whether this may be one; None: nobody can tell."""
        ...

    def agree(self, fields: Mapping[str, str]) -> None:
        """Raises EngineError, naming rank and field, where ranks were given different things."""
        ...

    def first(self, value: Any, doing: str) -> Any:
        """Rank 0's tree, on every rank."""
        ...

    def settle(self, wanted: bool) -> tuple[bool, list[int]]:
        """Whether any rank wants to stop, and the bytes that each rank has sent since the last call."""
        ...

    def leave(self, why: str) -> None:
        """Tells the others that this rank ends, and why."""
        ...


class Engine(Part, ABC):
    """Where the work happens: a frozen description that is opened for a run."""

    def ranks(self) -> Ranks | None:
        """The processes that run this run together, joined; None where this one is alone with its workers."""
        return None

    @abstractmethod
    def refuses(self, plan: Any) -> str | None:
        """Why this engine cannot run the plan, with the cure; None where it can."""

    @abstractmethod
    def open(self, setting: Setting) -> Session:
        """Starts a session."""


class Observer(Protocol):
    """Receives every event and returns nothing; an exception in an observer never reaches the run."""

    def __call__(self, event: Event, /) -> None: ...


@runtime_checkable
class Cohort(Protocol):
    """Who takes part in a round."""

    def config(self) -> dict[str, Any]:
        """Plain data for the record."""
        ...

    def sample(self, population: int, seed: int, round: int) -> Any:
        """Places in the population [c], distinct, in the cohort's order: a function of the three arguments."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on after ``round`` committed rounds."""

    round: int
    state: Tree
    stages: Tree
    memories: Mapping[str, Tree | None]
    """Memories of the clients that changed since the last checkpoint (all of them when read back)."""
    finished: bool = False


class Store(Protocol):
    """What survives a crash. A store may write behind by a second; whatever it has written is whole."""

    def create(self, run: str, record: Mapping[str, Any]) -> None:
        """A new run with its record: resolved config, seed, digest, choices, versions."""
        ...

    def record(self, run: str) -> dict[str, Any]:
        """The record of a run, with its ``id``, ``started`` and ``status``; a unique prefix of the id will do.

        Raises ResumeError, naming the nearest id, where there is none.
        """
        ...

    def update(self, run: str, **fields: Any) -> None:
        """Changes fields of the record (``choices``, ``status``)."""
        ...

    def event(self, run: str, event: Event) -> None:
        """Appends an event."""
        ...

    def commit(self, run: str, checkpoint: Checkpoint) -> None:
        """Takes a committed round: it and the events before it become durable together."""
        ...

    def flush(self) -> None:
        """Makes everything taken so far durable."""
        ...

    def load(self, run: str) -> Checkpoint | None:
        """The last durable checkpoint, or None before the first round."""
        ...

    def events(
        self, run: str, *, until_round: int | None = None, kinds: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """The run's events as plain data, in order: all, or those of some kinds (``("RoundCommitted",)``)."""
        ...

    def rewind(self, run: str, round: int) -> None:
        """Forgets events of rounds after ``round``, which are computed again, and makes this store the run's writer."""
        ...

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first: id, started, status, rounds, config and last metrics."""
        ...

    def close(self) -> None:
        """Flushes and lets go of the files."""
        ...
