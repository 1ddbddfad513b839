"""Buffered rounds: asynchronous training, K answers at a time, with staleness.

Clients are never waited for: as soon as one has answered, another starts from the newest model, and every K answers
make a new model. Time is simulated: how long a client takes is a function of the seeds and the plan's world, so an
asynchronous run has the same answer on every engine, and resumes bit for bit. What a client computes does not depend on
when it is computed, so its work is done when its answer is due. In real time (``clock="real"``) it is the workers who
decide: :mod:`insitu.rounds.arrivals`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from insitu.core import checks, seeds
from insitu.core.errors import PlanError, RoundError
from insitu.core.part import Part
from insitu.rounds.world import LogNormal, World
from insitu.rounds.world.crowd import Crowd

if TYPE_CHECKING:
    from insitu.rounds.plan import Plan

USUAL_WORLD = World(speed=LogNormal(median=1.0, sigma=0.5), jitter=0.05)
"""Where the plan has none: an example takes about a second, and links take no time."""
CANDIDATES, BATCHES = 64, 8
MOST_LOST = 10_000


@dataclass(frozen=True)
class Buffered(Part):
    r"""FedBuff: K answers make a round, and an answer's change counts less the older its model is.

    .. math:: \Delta_i \leftarrow (1 + \tau_i)^{-a} \, \Delta_i

    τ is the number of rounds committed since the client got its model.

    size         K, answers in a round
    concurrency  clients at work at any time; None: twice ``size``, or with a ``bound`` all there are
    staleness    a, how fast old answers lose weight; 0: not at all
    bound        s, how many tasks a client may be ahead of the slowest of all clients: who is further ahead waits.
                 None: nobody waits
    clock        "simulated", or "real": whoever is really faster answers more often, on engines with workers
                 (``processes``, ``spmd``), which are all at work unless ``concurrency`` is given

    On the simulated clock, how long a client takes is the plan's ``world``; without one a device trains on a log-normal
    number of examples a second (median 1, σ 0.5), and links take no time. The history's ``clock`` is the time of a
    commit since the run began, ``staleness`` the mean τ of its answers, and with a bound ``lead`` the tasks that the
    fastest client has done more than the slowest, at most s + 1.

    A parameter server is ``size=1``, every worker at work: asynchronous without a bound, stale-synchronous with one.
    With ``bound=0`` all wait for all, and where a round takes all answers that is an ordinary, synchronous round.

    Reference: Nguyen et al., *Federated Learning with Buffered Asynchronous Aggregation*, AISTATS 2022, algorithm 1;
    the polynomial discount is section 5's with a = 0.5. Deviation: the mean is weighted by the algorithm's weights.
    The bound: Ho et al., *More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server*, NeurIPS
    2013.
    """

    size: int = 10
    concurrency: int | None = None
    staleness: float = 0.5
    bound: int | None = None
    clock: Literal["simulated", "real"] = "simulated"

    @classmethod
    def part_name(cls) -> str:
        return "buffered"

    def __post_init__(self) -> None:
        checks.count(size=self.size)
        if self.concurrency is not None and checks.count(concurrency=self.concurrency) < self.size:
            raise PlanError(
                f"concurrency={self.concurrency} clients at work cannot fill a buffer of size={self.size} at once:"
                " use a larger concurrency or a smaller size"
            )
        checks.not_negative(staleness=self.staleness)
        if self.bound is not None and self.bound != 0:
            checks.count(bound=self.bound)
        checks.one_of(("simulated", "real"), clock=self.clock)

    def config(self) -> dict[str, Any]:
        """What is as usual and came later is left out, so that older runs can still be resumed."""
        return {k: v for k, v in super().config().items() if (k, v) != ("clock", "simulated")}

    @property
    def real(self) -> bool:
        """Whether time is real."""
        return self.clock == "real"

    def at_work(self, population: int) -> int:
        """Clients at work at any time, of so many, on the simulated clock."""
        return self.concurrency or (2 * self.size if self.bound is None else population)

    def discount(self, age: int) -> float:
        """(1 + τ)^−a."""
        return float((1 + age) ** -self.staleness)


@dataclass(frozen=True, order=True)
class Flight:
    """A client at work: when it will answer, or be lost, and which version it started from."""

    due: float
    sequence: int
    place: int
    version: int
    answers: bool


@dataclass(frozen=True)
class Sky:
    """All clients at work: the asynchronous part of the state, a tree for checkpoints (:meth:`tree`).

    clock     simulated seconds since the start of the run
    started   how many flights there have been
    messages  what was asked at each version that somebody still works on
    bytes_up  mean bytes of the last round's updates; None before there was one
    done      tasks that each client has done, by place, where there is a bound on them
    """

    clock: float
    started: int
    flights: tuple[Flight, ...]
    messages: Mapping[int, Any]
    bytes_up: float | None = None
    done: tuple[int, ...] = ()

    def tree(self) -> dict[str, Any]:
        """As a tree."""
        return {
            "clock": self.clock,
            "started": self.started,
            "flights": [[f.due, f.sequence, f.place, f.version, f.answers] for f in self.flights],
            "messages": {str(version): message for version, message in self.messages.items()},
            "bytes_up": self.bytes_up,
            "done": list(self.done),
        }

    @classmethod
    def of(cls, pending: Mapping[str, Any]) -> Sky:
        """Out of a tree; an empty one is the sky before the first round."""
        if not pending:
            return cls(0.0, 0, (), {})
        flights = tuple(Flight(float(due), *rest) for due, *rest in pending["flights"])
        messages = {int(version): message for version, message in pending["messages"].items()}
        done = tuple(int(count) for count in pending.get("done", ()))
        return cls(float(pending["clock"]), int(pending["started"]), flights, messages, pending["bytes_up"], done)


class Landed(NamedTuple):
    """The flights that fill the buffer, in the order of their arrival, and what is left after them."""

    arrived: list[Flight]
    sky: Sky
    messages: dict[int, Any]
    measures: dict[str, float]


def next_arrivals(plan: Plan, sky: Sky, version: int, message: Any, down: int, crowd: Crowd) -> Landed:
    """The next K answers, the sky after them, and the messages by version.

    Whoever lands or is lost is replaced at once by a client that is available and not at work, drawn uniformly, with
    the newest model; where there is none, the seat stays empty until there is. A client whose answer waits in the
    buffer does not start again before the round is committed: its memory would fork. ``down`` are the message's bytes.
    """
    assert plan.buffered is not None
    size, population = plan.buffered.size, len(crowd.clients)
    check_size(size, population)
    tower = _Tower(plan, crowd, down, down if sky.bytes_up is None else sky.bytes_up)
    wanted = min(plan.buffered.at_work(population), population)
    pace = Pace(plan.buffered.bound, population, sky.done)
    heap, clock, started = list(sky.flights), sky.clock, sky.started
    heapq.heapify(heap)
    busy = {flight.place for flight in heap}
    arrived: list[Flight] = []
    lost = 0
    while len(arrived) < size:
        next_free = np.inf
        while len(heap) < wanted and len(barred := busy | pace.ahead()) < population:
            place = tower.free(started, barred, clock)
            if place is None:
                next_free = tower.next_free(barred, clock)
                break
            heapq.heappush(heap, tower.flight(place, started, clock, version))
            busy.add(place)
            started += 1
        if next_free < (heap[0].due if heap else np.inf):
            clock = next_free
            continue
        if not heap:
            raise RoundError(f"{len(arrived)} of {size} answers are there, and no other client is ever available again")
        flight = heapq.heappop(heap)
        clock = flight.due
        if flight.answers:
            arrived.append(flight)
            pace.did(flight.place)
            continue
        busy.discard(flight.place)
        lost += 1
        if lost > MOST_LOST:
            raise RoundError(
                f"{lost} clients were lost one after another before {size} answered: give the world a smaller dropout,"
                f" longer availability, or faster devices{pace.hint()}"
            )
    messages = {**sky.messages, version: message}
    still = {flight.version for flight in heap}
    kept = {v: m for v, m in messages.items() if v in still}
    after = Sky(clock, started, tuple(sorted(heap)), kept, done=pace.tasks())
    measures = {
        "clock": clock,
        "simulated_seconds": clock - sky.clock,
        "staleness": sum(version - flight.version for flight in arrived) / size,
        "dropped": lost,
        **pace.measures(),
    }
    return Landed(arrived, after, messages, measures)


def check_size(size: int, population: int) -> None:
    """Raises PlanError where there are not as many clients as answers in a round: each answers once in it."""
    if size > population:
        raise PlanError(f"{population} clients cannot fill a buffer of size={size}: use Buffered({population})")


class Pace:
    """How many tasks each client has done, where a bound keeps the fast from running away from the slow."""

    def __init__(self, bound: int | None, population: int, done: tuple[int, ...]) -> None:
        self.bound = bound
        self.done = np.array(done or (0,) * (population if bound is not None else 0), dtype=np.int64)

    def did(self, place: int) -> None:
        """One more task of this client is done."""
        if self.bound is not None:
            self.done[place] += 1

    def ahead(self) -> set[int]:
        """Clients that must wait for the slowest."""
        if self.bound is None:
            return set()
        return set(np.flatnonzero(self.done > self.done.min() + self.bound).tolist())

    def hint(self) -> str:
        """What may be behind it where nobody answers."""
        return "" if self.bound is None else f" (with bound={self.bound}, all wait for whoever never answers)"

    def tasks(self) -> tuple[int, ...]:
        """For the next round."""
        return tuple(self.done.tolist())

    def measures(self) -> dict[str, float]:
        """For the history."""
        return {} if self.bound is None else {"lead": int(np.ptp(self.done))}


class _Tower:
    """Who may start next, and how long it will take: the plan's world, asked about one client at a time."""

    def __init__(self, plan: Plan, crowd: Crowd, down: float, up: float) -> None:
        self.plan, self.crowd, self.down, self.up = plan, crowd, down, up

    def flight(self, place: int, sequence: int, clock: float, version: int) -> Flight:
        """The flight of a client that starts now."""
        at = np.array([place])
        chance = seeds.seed(self.crowd.seed, sequence, "", "flight")
        work = self.crowd.work(self.plan.algorithm, at, version + 1)
        fates = self.crowd.fates(chance, at, work, self.down, self.up, clock)
        return Flight(clock + float(fates.seconds[0]), sequence, place, version, bool(fates.answers[0]))

    def free(self, sequence: int, busy: set[int], clock: float) -> int | None:
        """A client that is available and not at work, drawn uniformly; None where there is none."""
        generator = seeds.generator(self.crowd.seed, sequence, "", "next client")
        population = len(self.crowd.clients)
        if len(busy) <= population // 2:
            for _ in range(BATCHES):  # of a million clients, one that is free is found without looking at all of them
                places = generator.integers(population, size=CANDIDATES)
                for place in places[self.crowd.available(places, clock)].tolist():
                    if place not in busy:
                        return int(place)
        rest = self._others(busy)
        rest = rest[self.crowd.available(rest, clock)]
        return int(rest[generator.integers(len(rest))]) if len(rest) else None

    def next_free(self, busy: set[int], clock: float) -> float:
        """The first moment after now at which a client that is not at work becomes available."""
        return self.crowd.next_available(self._others(busy), clock)

    def _others(self, busy: set[int]) -> np.ndarray:
        free = np.ones(len(self.crowd.clients), dtype=bool)
        free[list(busy)] = False
        return np.flatnonzero(free)
