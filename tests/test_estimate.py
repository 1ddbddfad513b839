"""estimate(): bytes to the byte, times on a clock of our own, and nothing left behind."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.kmeans import KMeans
from insitu.algorithms.scaffold import Scaffold
from insitu.core import events
from insitu.core.errors import PlanError
from insitu.data.clients import Clients
from insitu.learners.numpy import LogisticLearner

module = importlib.import_module("insitu.estimate")
stopwatch = importlib.import_module("insitu.stopwatch")

SIZES = [3 + place % 7 for place in range(20)]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(sum(SIZES), 4))
Y = (X[:, 0] > 0).astype(int)
PARTS = np.split(np.arange(len(X)), np.cumsum(SIZES)[:-1])
CLIENTS = Clients.from_arrays(X, Y, PARTS)
FEDAVG = FedAvg(lr=0.1, batch_size=4)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current directory, and rounds of which two are enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stopwatch, "LONG_ENOUGH", 0.0)
    return tmp_path


@pytest.mark.parametrize(
    "plan",
    [
        insitu.Plan(FEDAVG, LogisticLearner(), cohort=insitu.Uniform(5)),
        insitu.Plan(FEDAVG, LogisticLearner(), evaluate_every=0),
        insitu.Plan(FEDAVG, LogisticLearner(), cohort=insitu.Poisson(0.4), evaluate_every=3),
        insitu.Plan(Scaffold(lr=0.1), LogisticLearner(), cohort=insitu.Uniform(fraction=0.3)),
        insitu.Plan(KMeans(k=2), cohort=insitu.Uniform(5), evaluate_every=0),
    ],
    ids=["uniform", "everyone", "poisson", "scaffold", "kmeans"],
)
def test_bytes_are_those_of_the_run(plan):
    rounds, test = 11, (X, Y) if plan.evaluate_every else None
    given = {"rounds": rounds, "engine": "inline", "seed": 3, "evaluate": test}
    found = insitu.estimate(plan, CLIENTS, **given)
    history = insitu.run(plan, CLIENTS, store=None, observers=[], **given).history
    assert found.bytes_up == sum(row["bytes_up"] for row in history)
    assert found.bytes_down == sum(row["bytes_down"] for row in history)
    assert found.evaluations == sum("loss" in row for row in history)
    assert found.measured == 2
    assert found.choices["engine"] == "inline"


def test_nothing_is_left_behind(folder):
    plan = insitu.Plan(FEDAVG, LogisticLearner(), cohort=insitu.Uniform(5))
    for stored in (True, False):
        insitu.estimate(plan, CLIENTS, rounds=3, engine="inline", stored=stored)
    assert list(folder.iterdir()) == []


def test_a_run_of_one_round_is_measured_whole():
    plan = insitu.Plan(FEDAVG, LogisticLearner(), cohort=insitu.Uniform(5))
    found = insitu.estimate(plan, CLIENTS, rounds=1, engine="inline", evaluate=(X, Y))
    assert (found.measured, found.evaluations) == (1, 1)
    assert found.seconds > found.round.seconds > 0


def test_bad_input_is_that_of_a_run():
    with pytest.raises(PlanError, match="rounds=0"):
        insitu.estimate(insitu.Plan(FEDAVG, LogisticLearner()), CLIENTS, rounds=0)
    with pytest.raises(PlanError, match="'vectorized' cannot run this plan"):
        insitu.estimate(insitu.Plan(FEDAVG, LogisticLearner()), CLIENTS, rounds=2, engine="vectorized")


class Clock:
    """A run whose parts take the seconds that are said; CPU is twice as much."""

    def __init__(self, start, first, later, evaluation, end):
        self.start, self.end = start, end
        self.rounds = {1: first}
        self.later, self.evaluation = later, evaluation
        self.now = 0.0
        self.joined = None
        """The round before which another process joins in; from there on rounds take half as long."""
        self.round = 0

    def choices(self):
        return {"workers": 2 if self.joined and self.round >= self.joined else 1}

    def processes(self):
        return {1, 2} if self.round else {1}

    def clocks(self):
        return stopwatch.Cost(self.now, 2 * self.now)

    def run(self, plan, clients, *, rounds, observers, evaluate_every, engine, **_):
        (watch,) = observers
        engine.choices = self.choices
        self.now += self.start
        watch(events.RunStarted("a", 0, "inline", rounds, len(clients), {"engine": "inline"}))
        try:
            for round in range(1, rounds + 1):
                watch(events.RoundStarted("a", round, 20))
                self.round = round
                self.now += self.rounds.get(round, self.later) / self.choices()["workers"]
                watch(events.RoundCommitted("a", round, 20, 0, 0.0, {}, 2000, 4000))
                if evaluate_every:
                    self.now += self.evaluation * (3 if round == 1 else 1)
                    watch(events.Evaluated("a", round, "central", {}))
            watch(events.RunFinished("a", rounds, 0.0))
        finally:
            self.now += self.end


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(start=5.0, first=7.0, later=2.0, evaluation=0.5, end=0.25)
    monkeypatch.setattr(module, "run", clock.run)
    monkeypatch.setattr(stopwatch, "_clocks", clock.clocks)
    monkeypatch.setattr(stopwatch, "_workers", lambda: 0.0)
    return clock


@pytest.mark.parametrize("every", [0, 1, 10, 40])
def test_start_rounds_and_evaluations_are_told_apart(clock, every):
    """All clients take part, so that every round has the same examples and takes as long as the second one."""
    plan = insitu.Plan(FEDAVG, LogisticLearner(), evaluate_every=every)
    found = insitu.estimate(plan, CLIENTS, rounds=25)
    evaluations = {0: 0, 1: 25, 10: 3, 40: 1}[every]
    once = 5 + (7 - 2) + 0.25 + (1.0 if every else 0.0)  # the first evaluation takes 1.5 s, the others 0.5 s
    assert (found.evaluations, found.measured) == (evaluations, 2)
    assert found.start.seconds == pytest.approx(once)
    assert found.round.seconds == pytest.approx(2)
    assert found.seconds == pytest.approx(once + 25 * 2 + evaluations * 0.5)
    assert found.cpu_seconds == pytest.approx(2 * found.seconds)
    assert (found.bytes_up, found.bytes_down) == (25 * 2000, 25 * 4000)
    assert found.plain()["start"] == {"seconds": found.start.seconds, "cpu_seconds": found.start.cpu_seconds}


def test_rounds_go_on_until_other_processes_have_joined_in(clock, monkeypatch):
    """As long as one that was started is not at work, usual rounds are still to come."""
    monkeypatch.setattr(stopwatch, "_processes", clock.processes)
    clock.joined = 6
    plan = insitu.Plan(FEDAVG, LogisticLearner(), evaluate_every=0)
    found = insitu.estimate(plan, CLIENTS, rounds=100)
    assert found.measured == 8  # five alone, the sixth pays for the change, memory is looked at in the seventh
    assert found.round.seconds == pytest.approx(1)
    assert found.choices["workers"] == 2
    assert found.seconds == pytest.approx(5 + (7 + 4 * 2) + 95 * 1 + 0.25)
    clock.now, clock.round = 0.0, 0
    short = insitu.estimate(plan, CLIENTS, rounds=6)  # all rounds of the run are measured: nothing is inferred
    assert short.seconds == pytest.approx(5 + (7 + 4 * 2) + 1 + 0.25)


def test_processes_that_never_join_in_are_not_waited_for(clock, monkeypatch):
    monkeypatch.setattr(stopwatch, "_processes", clock.processes)
    monkeypatch.setattr(stopwatch, "PATIENCE", 20.0)
    plan = insitu.Plan(FEDAVG, LogisticLearner(), evaluate_every=0)
    found = insitu.estimate(plan, CLIENTS, rounds=100)
    assert found.measured == 8  # 7 s, and seven of 2 s
    assert found.round.seconds == pytest.approx(2)


def test_quick_rounds_are_measured_longer(clock, monkeypatch):
    monkeypatch.setattr(stopwatch, "LONG_ENOUGH", 7.0)
    plan = insitu.Plan(FEDAVG, LogisticLearner(), evaluate_every=0)
    assert insitu.estimate(plan, CLIENTS, rounds=25).measured == 5  # four of two seconds after the first
    assert insitu.estimate(plan, CLIENTS, rounds=3).measured == 3
    clock.later = 0.001
    assert insitu.estimate(plan, CLIENTS, rounds=200).measured == stopwatch.MOST_ROUNDS


def test_cohorts_that_are_larger_than_usual_are_taken_into_account(clock):
    plan = insitu.Plan(FEDAVG, LogisticLearner(), cohort=insitu.Uniform(2), evaluate_every=0)
    sizes = [sum(SIZES[place] for place in plan.cohort.sample(20, 3, round)) for round in range(1, 41)]
    found = insitu.estimate(plan, CLIENTS, rounds=40, seed=3)
    assert found.round.seconds == pytest.approx(2 * np.mean(sizes) / sizes[1])
