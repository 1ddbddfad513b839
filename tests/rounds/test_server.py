"""A round counts as a whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from insitu import Client, Data, Plan, Poisson, Policy, Uniform
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.scaffold import Scaffold
from insitu.core import wire
from insitu.core.protocols import Setting, Stage
from insitu.core.types import Folded
from insitu.engines.inline import Inline
from insitu.learners.numpy import LinearLearner
from insitu.privacy.clip import Clip
from insitu.rounds.cohort import draw
from insitu.rounds.memory import Memories
from insitu.rounds.outcome import Model
from insitu.rounds.server import Server


class People:
    """Ten clients; those in ``down`` cannot be reached."""

    def __init__(self, n: int = 10) -> None:
        self.n, self.down = n, set()
        self.visited: list[int] = []

    def __len__(self):
        return self.n

    def id_at(self, place):
        return f"c{place}"

    def at(self, place):
        self.visited.append(place)
        if place in self.down:
            raise ConnectionError("unreachable")
        rng = np.random.default_rng(place)
        x = rng.normal(size=(3 + place, 2))
        return Client(f"c{place}", Data(x, x @ [1.0, -1.0] + 0.1 * place))

    def size_at(self, place):
        return 3 + place


@dataclass
class Clock:
    now: float = 0.0
    ticks: float = 0.0

    def __call__(self) -> float:
        self.now += self.ticks
        return self.now


def server(plan, people, clock=None, memories=None):
    memories = Memories() if memories is None else memories
    session = Inline().open(Setting(plan, people, memories, 5, 3))
    return Server("run", plan, session, people, memories, 3, clock=clock or Clock())


def fresh(plan):
    return Model(0, plan.algorithm.init(plan.learner.init(3)))


def scaffold(**more):
    return Plan(Scaffold(lr=0.05, steps=2, batch_size=2), LinearLearner(2), **more)


def snapshot(model, memories):
    return wire.encode([model.version, model.state, model.stages, dict(memories)])


def test_a_round_that_counts_moves_model_and_memories():
    plan, people = scaffold(), People()
    one = server(plan, people)
    model = fresh(plan)
    outcome = one.run_round(model, 1)
    assert outcome.model.version == 1
    assert [report.client for report in outcome.reports] == [f"c{i}" for i in range(10)]
    assert set(one.memories) == {f"c{i}" for i in range(10)}
    assert (outcome.model.state["shared"]["weight"] != 0).all()


@pytest.mark.parametrize(
    ("down", "policy", "ticks", "says"),
    [
        (range(10), Policy(), 0.0, "0 of 10"),
        (range(6), Policy(quorum=0.5), 0.0, "4 of 10"),
        ([], Policy(quorum=1.0, deadline=timedelta(seconds=5)), 1.0, "deadline"),
    ],
)
def test_a_void_round_leaves_everything_as_it_was(down, policy, ticks, says):
    plan, people = scaffold(policy=policy), People()
    first = server(plan, people).run_round(fresh(plan), 1).model or fresh(plan)
    memories = Memories({"c1": {"algorithm": {"method": {"weight": np.ones((1, 2)), "bias": np.ones(1)}}}})
    people.down = set(down)
    one = server(plan, people, Clock(ticks=ticks), memories)
    before = snapshot(first, memories)
    outcome = one.run_round(first, 2)
    assert outcome.model is None
    assert says in outcome.reason
    assert snapshot(first, memories) == before
    memories.commit()
    assert snapshot(first, memories) == before  # nothing was left pending
    assert memories.changed() == {}


def test_a_round_that_fails_to_be_told_leaves_memories_as_they_were():
    """An error in the server's own half (a reduce, a stage, tell) is the run's: nothing of the round remains."""

    @dataclass(frozen=True)
    class Broken(Stage):
        def encode(self, update, memory, context):
            return update, memory

        def decode(self, total, state, context):
            raise RuntimeError("no")

    plan, memories = scaffold(stages=(Broken(),)), Memories()
    with pytest.raises(RuntimeError, match="no"):
        server(plan, People(), memories=memories).run_round(fresh(plan), 1)
    assert dict(memories) == {}


def test_failures_are_left_out_of_the_mean():
    plan = Plan(FedAvg(lr=0.05, batch_size=None), LinearLearner(2))
    people, few = People(), People()
    people.down = {0, 3, 9}
    outcome = server(plan, people).run_round(fresh(plan), 1)
    assert [f.client for f in outcome.failures] == ["c0", "c3", "c9"]
    assert "ConnectionError: unreachable" in outcome.failures[0].error
    w, examples = np.zeros(2), 0
    for place in (1, 2, 4, 5, 6, 7, 8):
        data = few.at(place).data
        w += len(data) * 0.05 * 2 * data.x.T @ data.y / len(data)
        examples += len(data)
    np.testing.assert_allclose(outcome.model.state["shared"]["weight"][0], w / examples, rtol=1e-12)


def test_scaffolds_control_moves_by_the_share_that_answered():
    """c moves by |S|/N · mean, where S are those who answered."""
    plan, people = scaffold(), People()
    people.down = {1, 2, 5}
    one = server(plan, people)
    state = one.run_round(fresh(plan), 1).model.state
    controls = [one.memories[f"c{i}"]["algorithm"]["method"]["weight"] for i in range(10) if i not in people.down]
    np.testing.assert_allclose(state["control"]["weight"], sum(controls) / 10, rtol=1e-12)


def test_an_empty_cohort_commits_nothing():
    plan = scaffold(cohort=Poisson(1e-9))
    model, memories = fresh(plan), Memories()
    before = snapshot(model, memories)
    outcome = server(plan, People(), memories=memories).run_round(model, 1)
    assert outcome.model is None
    assert outcome.reason
    assert snapshot(model, memories) == before


# ------------------------------------------------------------ over-selection


def test_over_selection_asks_more_and_stops_when_enough_have_answered():
    plan = scaffold(cohort=Uniform(4), policy=Policy(over_select=0.5), block=1)
    people = People()
    outcome = server(plan, people).run_round(fresh(plan), 1)
    assert outcome.asked == 6
    assert len(outcome.reports) == 4
    assert len(people.visited) == 4  # nobody works for nothing, where work is one after another


def test_over_selection_makes_up_for_failures():
    plan = scaffold(cohort=Uniform(4), policy=Policy(over_select=0.5, quorum=1.0))
    people = People()
    places, wanted = draw(plan.cohort, plan.policy, 10, 3, 1, 0)
    assert wanted == 4
    people.down = set(places[:2].tolist())
    outcome = server(plan, people).run_round(fresh(plan), 1)
    assert len(outcome.reports) == 4
    assert len(outcome.failures) == 2


def test_those_asked_in_addition_are_others():
    plan = scaffold(cohort=Uniform(4), policy=Policy(over_select=1.0))
    for round in range(1, 30):
        places, wanted = draw(plan.cohort, plan.policy, 10, 3, round, 0)
        assert wanted == 4
        assert len(set(places.tolist())) == 8
        np.testing.assert_array_equal(places[:4], plan.cohort.sample(10, 3, round))
    assert len(draw(plan.cohort, plan.policy, 5, 3, 1, 0)[0]) == 5  # no more than there are


def test_another_attempt_draws_another_cohort():
    plan = scaffold(cohort=Uniform(4))
    cohorts = {tuple(draw(plan.cohort, plan.policy, 10, 3, 1, attempt)[0]) for attempt in range(4)}
    assert len(cohorts) == 4
    assert tuple(draw(plan.cohort, plan.policy, 10, 3, 1, 2)[0]) in cohorts


# ------------------------------------------------------------ stages


@dataclass(frozen=True)
class Times(Stage):
    """Multiplies on the client and divides on the server, noting who did what in which order."""

    factor: float = 2.0
    log: list = field(default_factory=list)
    decodes = "sum"

    def encode(self, update, memory, context):
        self.log.append(("encode", self.factor))
        shared = {k: v * self.factor for k, v in update.value["shared"].items()}
        return type(update)({**update.value, "shared": shared}, update.weight, update.metrics), {
            "n": (memory or {"n": 0})["n"] + 1
        }

    def decode(self, total, state, context):
        self.log.append(("decode", self.factor))
        shared = {k: v / self.factor for k, v in total.value["shared"].items()}
        told = type(total)({**total.value, "shared": shared}, total.weight, total.clients, total.population)
        return told, {"n": (state or {"n": 0})["n"] + 1}


def test_stages_are_undone_in_reverse_and_remember():
    log: list[Any] = []
    plan = Plan(FedAvg(lr=0.05), LinearLearner(2), stages=(Times(2.0, log), Times(4.0, log)))
    plain = Plan(FedAvg(lr=0.05), LinearLearner(2))
    one = server(plan, People(2))
    model = one.run_round(fresh(plan), 1).model
    assert log == [("encode", 2.0), ("encode", 4.0)] * 2 + [("decode", 4.0), ("decode", 2.0)]
    expected = server(plain, People(2)).run_round(fresh(plain), 1).model
    np.testing.assert_allclose(model.state["shared"]["weight"], expected.state["shared"]["weight"], rtol=1e-14)
    model = one.run_round(model, 2).model
    assert model.stages == {"0": {"n": 2}, "1": {"n": 2}}
    assert one.memories["c0"] == {"stages": {"0": {"n": 2}, "1": {"n": 2}}}


def test_clip_bounds_every_update():
    """A client whose data would move the model by kilometres moves it by the norm."""
    plan = Plan(FedAvg(lr=0.05, batch_size=None, weights="uniform"), LinearLearner(2), stages=(Clip(0.01),))
    outcome = server(plan, People(1)).run_round(fresh(plan), 1)
    shared = outcome.model.state["shared"]
    assert np.sqrt((shared["weight"] ** 2).sum() + (shared["bias"] ** 2).sum()) == pytest.approx(0.01)
    wide = Plan(FedAvg(lr=0.05, batch_size=None, weights="uniform"), LinearLearner(2), stages=(Clip(1e6),))
    plain = Plan(FedAvg(lr=0.05, batch_size=None, weights="uniform"), LinearLearner(2))
    np.testing.assert_array_equal(
        server(wide, People(3)).run_round(fresh(wide), 1).model.state["shared"]["weight"],
        server(plain, People(3)).run_round(fresh(plain), 1).model.state["shared"]["weight"],
    )


def test_an_engine_that_folds_blocks_is_counted_by_its_clients():
    plan = scaffold(policy=Policy(quorum=1.0))

    class Folding:
        def __init__(self, inner):
            self.inner, self.choices = inner, {}

        def run(self, work):
            from insitu.rounds.fold import fold_in

            block: dict[int, tuple] = {}
            for answer in self.inner.run(work):
                accumulator, reports = block.setdefault(answer.task.block, (plan.reduce.zero(), []))
                block[answer.task.block] = (fold_in(plan, accumulator, answer), [*reports, answer.report()])
            for number, (accumulator, reports) in sorted(block.items(), reverse=True):
                yield Folded(number, accumulator, reports)

        def close(self):
            pass

    people, memories = People(), Memories()
    inner = Inline().open(Setting(plan, people, memories, 5, 3))
    folding = Server("run", plan, Folding(inner), people, memories, 3, clock=Clock())
    outcome = folding.run_round(fresh(plan), 1)
    expected = server(plan, People()).run_round(fresh(plan), 1)
    assert len(outcome.reports) == 10
    np.testing.assert_array_equal(outcome.model.state["shared"]["weight"], expected.model.state["shared"]["weight"])


# ------------------------------------------------------------ updates that do not fit


class Misshapen(FedAvg):
    """Clients c0 … c9; those named tell an update of another shape, as a wrong version of a model would."""

    def local(self, task, client, learner, memory):
        update, memory = super().local(task, client, learner, memory)
        if client.id in ODD:
            shared = {name: np.ones(7) for name in update.value["shared"]}
            update = type(update)({"shared": shared}, update.weight, update.metrics)
        return update, memory


ODD: set[str] = set()


@pytest.mark.parametrize(
    ("odd", "block"),
    [({"c4"}, 10), ({"c0"}, 10), ({"c0"}, 1), ({"c9"}, 1), ({"c0", "c1", "c2"}, 3)],
    ids=["one", "the first", "the first block", "the last block", "a whole block"],
)
def test_an_update_of_another_shape_is_its_clients_failure(odd, block):
    """Also where it comes first, and where blocks are merged: the model says which shape is right."""
    ODD.clear()
    ODD.update(odd)
    plan = Plan(Misshapen(lr=0.05), LinearLearner(2), block=block)
    outcome = server(plan, People()).run_round(fresh(plan), 1)
    assert {failure.client for failure in outcome.failures} == odd
    assert len(outcome.reports) == 10 - len(odd)
    people = People()
    people.down = {int(client[1:]) for client in odd}
    plain = Plan(FedAvg(lr=0.05), LinearLearner(2), block=block)
    expected = server(plain, people).run_round(fresh(plain), 1)
    np.testing.assert_allclose(
        outcome.model.state["shared"]["weight"], expected.model.state["shared"]["weight"], rtol=1e-12
    )


def test_an_update_that_is_refused_does_not_count_for_the_quorum():
    ODD.clear()
    ODD.update({"c4", "c5"})
    plan = Plan(Misshapen(lr=0.05), LinearLearner(2), policy=Policy(quorum=0.9), block=10)
    outcome = server(plan, People()).run_round(fresh(plan), 1)
    assert outcome.model is None
    assert "8 of 10" in outcome.reason
