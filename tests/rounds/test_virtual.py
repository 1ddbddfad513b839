"""Rounds on the simulated clock: the policy's verdict against a loop by hand, and whole runs."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import insitu
from insitu import Plan, Poisson, Policy, Uniform
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.scaffold import Scaffold
from insitu.core import events, tree, wire
from insitu.core.errors import PlanError, RoundError
from insitu.core.part import Part
from insitu.data.clients import Clients
from insitu.engines.inline import Inline
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.virtual import Asked, Clock, judge
from insitu.rounds.world import LogNormal, Spells, World
from insitu.rounds.world.crowd import Fates

SIZES = [3 + place % 7 for place in range(40)]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(sum(SIZES), 4))
Y = (X[:, 0] > 0).astype(int)
PARTS = np.split(np.arange(len(X)), np.cumsum(SIZES)[:-1])
CLIENTS = Clients.from_arrays(X, Y, PARTS)
PHONES = World(
    speed=LogNormal(2.0, 0.7), up=LogNormal(100.0, 1.0), down=500.0, dropout=0.1, jitter=0.2,
    available=Spells(timedelta(minutes=4), timedelta(minutes=4)),
)  # fmt: skip


def plan(algorithm=None, **more):
    return Plan(
        algorithm or FedAvg(lr=0.1, batch_size=4), LogisticLearner(), **{"world": PHONES, "evaluate_every": 0, **more}
    )


def run(chosen, rounds=6, clients=CLIENTS, **more):
    given = {"engine": "inline", "store": None, "observers": [], "seed": 5, **more}
    return insitu.run(chosen, clients, rounds=rounds, **given)


def bits(result):
    return wire.encode([result.state, dict(sorted(result.memories.items()))])


def asked(seconds, answers, wanted):
    seconds, zeros = np.array(seconds, dtype=float), np.zeros(len(seconds))
    fates = Fates(seconds, np.array(answers, dtype=bool), zeros, seconds, zeros)
    return Asked(np.arange(len(seconds)), wanted, 0.0, len(seconds), fates)


# ------------------------------------------------------------ the verdict

hundredths = st.integers(0, 100).map(lambda k: k / 100)
ends = st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=12)


def by_hand(happens, wanted, deadline, least):
    """Second by second: (seconds, who counts) of a round that commits, or (seconds, None)."""
    counted, heard = [], 0
    for second in range(22):
        if deadline is not None and second > deadline:
            return deadline, sorted(counted) if len(counted) >= least else None
        for place, (end, answers) in enumerate(happens):
            if end != second:
                continue
            heard += 1
            counted += [place] * answers
            if len(counted) == wanted:
                return second, sorted(counted)
            if heard == len(happens):
                return second, sorted(counted) if len(counted) >= least else None
    raise AssertionError("somebody was never heard of")


@given(ends, st.integers(1, 12), st.none() | st.integers(1, 20), hundredths)
def test_the_verdict_is_that_of_a_clock_by_hand(happens, wanted, deadline, quorum):
    wanted = min(wanted, len(happens))
    policy = Policy(quorum=quorum, deadline=None if deadline is None else timedelta(seconds=deadline))
    verdict = judge(policy, asked(*zip(*happens, strict=True), wanted))
    least = max(1, math.ceil(round(quorum * wanted, 9)))
    seconds, counted = by_hand(happens, wanted, deadline, least)
    assert verdict.seconds == seconds
    assert verdict.effect == ("discard" if counted is None else "commit")
    if counted is not None:
        assert verdict.counted.tolist() == counted
    assert verdict.late + verdict.dropped + len(verdict.counted) == len(happens)


@given(
    st.lists(st.floats(0.1, 1e6), min_size=2, max_size=30), st.data(), st.none() | st.integers(1, 10**6),
)  # fmt: skip
def test_nobody_counts_after_the_deadline_and_asking_more_is_never_slower(seconds, data, deadline):
    wanted = data.draw(st.integers(1, len(seconds)))
    policy = Policy(deadline=None if deadline is None else timedelta(seconds=deadline))
    before = None
    for count in range(wanted, len(seconds) + 1):
        verdict = judge(policy, asked(seconds[:count], [True] * count, wanted))
        moments = np.array(seconds)[verdict.counted]
        assert (moments <= verdict.seconds).all()
        assert verdict.seconds <= (math.inf if deadline is None else deadline)
        assert len(moments) <= wanted
        assert before is None or verdict.seconds <= before
        before = verdict.seconds


@given(ends, st.integers(1, 12), st.data())
def test_a_failure_brings_in_the_next_and_shuts_nobody_out(happens, wanted, data):
    """What lets the server train in passes: whoever counted before a failure was known counts after it as well."""
    one = asked(*zip(*happens, strict=True), min(wanted, len(happens)))
    first = judge(Policy(), one)
    if first.effect != "commit":
        return
    broken = data.draw(st.sets(st.sampled_from(first.counted.tolist())))
    second = judge(Policy(), one, broken)
    assert set(second.counted) >= set(first.counted) - broken
    assert second.seconds >= first.seconds


def test_a_round_may_wait_beyond_its_deadline_for_the_quorum_and_no_longer():
    policy = Policy(quorum=0.6, deadline=timedelta(seconds=5), missed="wait")
    verdict = judge(policy, asked([9.0, 1.0, 8.0], [True] * 3, 3))
    assert (verdict.effect, verdict.seconds, list(verdict.counted), verdict.late) == ("commit", 8.0, [1, 2], 1)
    verdict = judge(policy, asked([9.0, 1.0, 8.0], [False, True, False], 3))
    assert (verdict.effect, verdict.seconds) == ("discard", 9.0)
    in_time = judge(policy, asked([9.0, 1.0, 4.0], [True] * 3, 3))
    assert (in_time.effect, in_time.seconds, list(in_time.counted)) == ("commit", 5.0, [1, 2])


def test_a_round_of_nobody_takes_no_time():
    verdict = judge(Policy(deadline=timedelta(seconds=5)), asked([], [], 0))
    assert (verdict.effect, verdict.seconds) == ("discard", 0.0)


# ------------------------------------------------------------ whole runs


def test_the_time_of_a_round_with_equal_devices():
    """2 epochs of at most 9 examples at 3 a second, the model's bytes at 10 B/s each way."""
    world = World(speed=3.0, down=10.0, up=10.0)
    result = run(plan(FedAvg(lr=0.1, epochs=2), world=world), rounds=3)
    size = tree.nbytes(result.state["shared"])
    ask = size + 8  # the learning rate travels too
    longest = 2 * max(SIZES) / 3.0
    assert [row["simulated_seconds"] for row in result.history] == pytest.approx(
        [ask / 10 + longest + ask / 10] + 2 * [ask / 10 + longest + size / 10]
    )
    row = result.history[-1]
    assert (row["late"], row["dropped"], row["asked"], row["available"]) == (0, 0, 40, 40)
    assert row["simulated_bytes_down"] == row["bytes_down"] == 40 * ask
    assert row["simulated_bytes_up"] == row["bytes_up"] == 40 * size


POLICIES = {
    "plain": Policy(),
    "over": Policy(over_select=0.5),
    "deadline": Policy(over_select=0.5, deadline=timedelta(seconds=9), quorum=0.25, retries=50),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_clock_goes_on_and_adds_up(policy):
    result = run(plan(cohort=Uniform(8), policy=POLICIES[policy]), rounds=12)
    clock = np.array([row["clock"] for row in result.history])
    spent = np.array([row["simulated_seconds"] for row in result.history])
    assert (spent > 0).all()
    np.testing.assert_allclose(np.cumsum(spent), clock, rtol=1e-12)
    for row in result.history:
        assert row["clients"] <= 8
        assert row["asked"] == (8 if policy == "plain" else min(12, row["available"]))
        assert row["clients"] + row["late"] + row["dropped"] == row["asked"]
        assert 0 <= row["simulated_bytes_up"] <= row["asked"] * row["bytes_up"] / row["clients"] * 1.1
    if policy == "deadline":
        assert max(row["clients"] for row in result.history) > 2
        assert min(row["clients"] for row in result.history) < 8


@dataclasses.dataclass(frozen=True)
class Those(Part):
    """The cohorts of a list, round by round."""

    rounds: tuple

    def sample(self, population, seed, round):
        return np.array(self.rounds[round - 1])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_answer_is_that_of_the_clients_that_counted(policy):
    """Bit for bit, memories included: as if nobody else had been asked, in the cohort's order."""
    seen = []
    chosen = plan(Scaffold(lr=0.1, steps=3, batch_size=4), cohort=Uniform(8), policy=POLICIES[policy], block=3)
    result = run(chosen, observers=[seen.append])
    arrived = {e.round: [told["client"] for told in e.each()] for e in seen if isinstance(e, events.UpdatesArrived)}
    cohorts = Those(tuple(tuple(int(client) for client in arrived[r]) for r in sorted(arrived)))
    plain = Plan(chosen.algorithm, LogisticLearner(), cohort=cohorts, evaluate_every=0, block=3)
    assert bits(run(plain)) == bits(result)


def test_over_selection_saves_time():
    """On devices like these it must: the slowest of ten against the tenth of fifteen."""
    world = dataclasses.replace(PHONES, dropout=0.0)
    waits, hurries = (
        run(plan(cohort=Uniform(10), policy=Policy(over_select=o), world=world), rounds=40).history[-1]["clock"]
        for o in (0.0, 0.5)
    )
    assert hurries < 0.8 * waits


def test_without_a_word_about_availability_the_cohort_is_the_same_as_without_a_world():
    world = World(speed=LogNormal(2.0))
    a, b = (run(plan(cohort=Uniform(8), world=w)) for w in (world, None))
    assert bits(a) == bits(b)


def test_nobody_works_for_nothing():
    """Clients that are late or lost are never loaded."""
    loaded = []

    def load(place):
        loaded.append(place)
        return X[PARTS[place]], Y[PARTS[place]]

    clients = Clients.lazy(range(40), load, SIZES, schema=CLIENTS.schema())
    result = run(plan(cohort=Uniform(8), policy=POLICIES["over"]), clients=clients)
    assert sum(row["late"] + row["dropped"] for row in result.history) > 10
    first = loaded.count(0)
    assert len(loaded) - first <= sum(row["clients"] for row in result.history)


def test_sizes_that_are_not_known_are_learnt_by_loading():
    unknown = Clients.lazy(range(40), lambda place: (X[PARTS[place]], Y[PARTS[place]]), schema=CLIENTS.schema())
    chosen = plan(cohort=Uniform(8), policy=POLICIES["over"])
    assert bits(run(chosen, clients=unknown)) == bits(run(chosen))


def test_a_failure_is_made_up_for_by_the_next_to_arrive():
    down = {1, 4, 7, 10, 13, 16, 19, 22, 25}

    def load(place):
        if place in down:
            raise OSError("gone")
        return X[PARTS[place]], Y[PARTS[place]]

    seen = []
    clients = Clients.lazy(range(40), load, SIZES, schema=CLIENTS.schema())
    world = dataclasses.replace(PHONES, dropout=0.0)
    chosen = plan(cohort=Uniform(8), policy=POLICIES["over"], world=world)
    result = run(chosen, clients=clients, observers=[seen.append])
    assert sum(row["failed"] for row in result.history) > 3
    assert sum(row["clients"] == 8 and row["failed"] > 0 for row in result.history) > 1
    assert {int(e.client) for e in seen if isinstance(e, events.ClientFailed)} <= down
    for row in result.history:
        assert row["clients"] + row["failed"] + row["late"] + row["dropped"] == row["asked"]


def test_void_rounds_take_the_deadline_each():
    """Three clients of four are too slow for the deadline, and a cohort is one client: 10 s a miss, 2 s a hit."""
    clients = Clients.from_arrays(X[:10], Y[:10], [np.arange(1), np.arange(1, 4), np.arange(4, 7), np.arange(7, 10)])
    seen = []
    policy = Policy(deadline=timedelta(seconds=10), retries=100)
    chosen = plan(cohort=Uniform(1), policy=policy, world=World(speed=0.2))
    result = run(chosen, rounds=5, clients=clients, observers=[seen.append])
    misses = [sum(isinstance(e, events.RoundDiscarded) and e.round == r for e in seen) for r in range(1, 6)]
    assert sum(misses) > 5
    assert [row["simulated_seconds"] for row in result.history] == pytest.approx([10 * n + 5 for n in misses])
    with pytest.raises(RoundError, match="4 times"):
        run(plan(cohort=Uniform(1), policy=dataclasses.replace(policy, retries=3), world=World(speed=0.01)))


def test_a_round_waits_for_its_cohort(tmp_path):
    """Two of three devices are on from second 100, again from 1100, …: both rounds begin there."""
    from insitu.rounds.world import Trace

    (tmp_path / "t.csv").write_text("device,start,end\n0,100,200\n1,50,200\n2,0,10\n2,990,1000\n")
    clients = Clients.from_arrays(X[:6], Y[:6], [[0, 1], [2, 3], [4, 5]])
    world = World(speed=0.02, available=Trace(tmp_path / "t.csv", by="id"))
    result = run(plan(cohort=Uniform(2), world=world), rounds=2, clients=clients)
    assert [row["clock"] for row in result.history] == [200.0, 1200.0]
    assert [row["available"] for row in result.history] == [2, 2]


def test_a_run_broken_off_in_a_round_goes_on_with_the_same_clock(tmp_path):
    """Broken in the third round's work, after void rounds; and once more between two rounds."""
    policy = POLICIES["deadline"]
    chosen = plan(Scaffold(lr=0.1, steps=3, batch_size=4), cohort=Uniform(8), policy=policy)
    whole = run(chosen, rounds=8)
    left = [20]

    def load(place):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return X[PARTS[place]], Y[PARTS[place]]

    seen = []
    clients = Clients.lazy(range(40), load, SIZES, schema=CLIENTS.schema())
    with pytest.raises(KeyboardInterrupt):
        run(chosen, rounds=8, clients=clients, store=tmp_path / "a.db", observers=[seen.append])
    assert 0 < sum(isinstance(e, events.RoundCommitted) for e in seen) < 8
    half = run(chosen, rounds=5, store=tmp_path / "a.db", resume=seen[0].run)
    rest = run(chosen, rounds=8, store=tmp_path / "a.db", resume=half.id)
    assert bits(rest) == bits(whole)
    for a, b in zip(rest.history, whole.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_another_seed_is_another_world():
    a, b = (run(plan(cohort=Uniform(8)), seed=s).history[-1]["clock"] for s in (1, 2))
    assert a != b


def test_methods_without_a_learner_have_time_too():
    from insitu.algorithms.kmeans import KMeans

    result = insitu.run(
        Plan(KMeans(k=2), world=World(speed=2.0)), CLIENTS, rounds=2, engine=Inline(), store=None, observers=[]
    )
    assert [row["clock"] for row in result.history] == [max(SIZES) / 2, max(SIZES)]


def test_the_clock_survives_a_checkpoint():
    for clock in (Clock(), Clock(1.5, 1.25, 1e6)):
        assert Clock.of(wire.decode(wire.encode(clock.tree()))) == clock
    assert Clock.of({}) == Clock()


# ------------------------------------------------------------ refusals


def test_the_first_to_answer_are_no_poisson_sample():
    with pytest.raises(PlanError, match=r"over_select=0\.3 .* use Uniform"):
        plan(cohort=Poisson(0.3), policy=Policy(over_select=0.3))


@pytest.mark.parametrize("world", [World, 3])
def test_a_world_is_a_world(world):
    with pytest.raises(PlanError, match="is not a World"):
        plan(world=world)


def test_the_world_is_part_of_the_record():
    config = plan().config()["world"]
    assert config["speed"] == {"name": "log_normal", "median": 2.0, "sigma": 0.7}
    assert config["available"] == {"name": "spells", "on": 240.0, "off": 240.0, "sigma": 0.5}
    assert plan(world=None).config()["world"] is None
