"""Asynchronous rounds in real time, with a session whose order of arrival the test chooses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import insitu
from insitu import Plan, Policy
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.scaffold import Scaffold
from insitu.compress.topk import TopK
from insitu.core import events, wire
from insitu.core.errors import PlanError, ResumeError, RoundError
from insitu.core.protocols import Engine, Stage
from insitu.core.types import Answer, Failure, Update
from insitu.data.clients import Clients
from insitu.engines.inline import attempt
from insitu.engines.spmd import Spmd
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.arrivals import Traffic
from insitu.rounds.buffered import Buffered
from insitu.rounds.world import World

X = np.random.default_rng(0).normal(size=(120, 3))
Y = (X[:, 0] > 0).astype(int)


def clients(n=6):
    return Clients.from_arrays(X, Y, np.array_split(np.arange(120), n))


def plan(algorithm=None, stages=(), policy=None, **more):
    return Plan(
        algorithm or FedAvg(lr=0.1, epochs=2, batch_size=8), LogisticLearner(), stages=stages,
        buffered=Buffered(**{"clock": "real", **more}), policy=policy or Policy(), evaluate_every=0,
    )  # fmt: skip


class AnyOrder:
    """A session that works on so many at a time, of whom one of the test's choice finishes first."""

    def __init__(self, setting, seats, seed, broken=(), log=None):
        self.setting, self.seats, self.choices = setting, seats, {}
        self.started, self.log, self.broken = [], [] if log is None else log, broken
        self.rng = np.random.default_rng(seed)

    def start(self, task):
        assert task.place not in [other.place for other in self.started], "at work already"
        assert task.index not in [other.index for other in self.started]
        self.started.append(task)
        self.log.append(("start", task.place, task.version))

    def arrived(self):
        task = self.started.pop(int(self.rng.integers(min(self.seats, len(self.started)))))
        self.log.append(("arrive", task.place, task.version))
        if task.place in self.broken:
            return Failure(task.client, task.index, task.block, "OSError: gone")
        return attempt(self.setting, task)

    def run(self, work):
        for task in work:
            yield attempt(self.setting, task)

    def close(self):
        pass


class Chosen(Engine):
    """The engine that opens it."""

    def __init__(self, seats=3, seed=0, broken=()):
        self.seats, self.seed, self.broken, self.log = seats, seed, broken, []

    def config(self):
        return {"name": "chosen"}

    def refuses(self, plan):
        return None

    def open(self, setting):
        return AnyOrder(setting, self.seats, self.seed, self.broken, self.log)


def run(chosen, engine="inline", rounds=8, n=6, **more):
    told = []
    result = insitu.run(
        chosen, clients(n), rounds=rounds, engine=engine, **{"store": None, "observers": [told.append], **more}
    )
    return result, [event for event in told if isinstance(event, events.Arrivals)]


# ------------------------------------------------------------ who starts, who arrives


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 9), st.integers(1, 4), st.integers(1, 4), st.sampled_from([None, 0, 1, 3]), st.integers(0, 10**6),
    st.booleans(),
)  # fmt: skip
def test_every_start_and_arrival_by_counting(n, size, seats, bound, seed, some_fail):
    """Nobody starts who is further ahead than the bound or waits in the buffer; each from the newest model."""
    size = min(size, n)
    engine = Chosen(seats, seed, broken={0} if some_fail and n > size else ())
    result, told = run(plan(size=size, bound=bound), engine, 12, n, seed=seed)
    done, at_work, in_round, version, landed = np.zeros(n, int), set(), set(), 0, []
    for what, place, started in engine.log:
        if what == "start":
            assert started == version
            assert place not in in_round
            assert bound is None or done[place] <= done.min() + bound
            at_work.add(place)
            assert len(at_work) <= seats
        else:
            at_work.remove(place)
            in_round.add(place)
            done[place] += 1
            if place not in engine.broken:
                landed.append([place, started])
            if len(in_round - set(engine.broken)) == size:
                version, in_round = version + 1, set()
    assert [row[1:3] for event in told for row in event.rows] == landed
    for row, event in zip(result.history, told, strict=True):
        ages = [row["round"] - 1 - version for _, _, version, _ in event.rows]
        assert row["staleness"] == np.mean(ages)
        assert row["clients"] == size == len(event.rows)
        assert ("lead" in row) == (bound is not None)
        assert row.get("lead", 0) <= (bound or 0) + 1
    clock = [row["clock"] for row in result.history]
    assert clock == sorted(clock)
    assert all(seconds >= 0 for event in told for *_, seconds in event.rows)


@pytest.mark.parametrize("seats", [1, 2, 6])
@pytest.mark.parametrize(
    "algorithm", [FedAvg(lr=0.1, epochs=2, batch_size=8), Scaffold(lr=0.1, epochs=1, batch_size=8)]
)
def test_all_in_every_round_and_a_bound_of_zero_is_synchronous_to_the_bit(algorithm, seats):
    ordinary = insitu.run(
        Plan(algorithm, LogisticLearner(), evaluate_every=0), clients(), rounds=8, engine="inline", store=None,
        observers=[],
    )  # fmt: skip
    result, _ = run(plan(algorithm, size=6, bound=0), Chosen(seats, 5))
    assert wire.digest(result.state) == wire.digest(ordinary.state)
    assert [row["staleness"] for row in result.history] == [0] * 8


def test_inline_works_one_after_another():
    """Nothing is then left to chance, and with everyone at work the ages are known."""
    a, b = (run(plan(size=1, concurrency=6), rounds=20)[0] for _ in range(2))
    assert wire.digest(a.state) == wire.digest(b.state)
    assert [row["staleness"] for row in a.history] == [*range(6), *[5] * 14]
    assert [row["staleness"] for row in run(plan(size=1), rounds=9)[0].history] == [0] * 9


def test_an_answer_counts_less_the_older_it_is_by_hand():
    """With everyone at work, round 2 takes an answer one version old, at half its weight: (1 + 1)^-1."""
    result, told = run(plan(size=1, concurrency=6, staleness=1.0), rounds=2)
    assert [row[2] for event in told for row in event.rows] == [0, 0]
    first, second = (clients().at(event.rows[0][1]) for event in told)
    alone = {}
    for client in (first, second):  # the change of a synchronous round of this client
        own = Clients.from_arrays(client.data.x, client.data.y, [np.arange(20)], ids=[client.id])
        chosen = Plan(FedAvg(lr=0.1, epochs=2, batch_size=8), LogisticLearner(), evaluate_every=0)
        alone[client.id] = insitu.run(chosen, own, rounds=1, engine="inline", store=None, observers=[])
    expected = alone[first.id].params["weight"] + 0.5 * alone[second.id].params["weight"]
    np.testing.assert_allclose(result.params["weight"], expected, rtol=1e-12)


def test_what_stages_packed_is_discounted_when_it_is_unpacked():
    """A compressor that keeps everything changes nothing, though what travels is its packed form."""
    bare, packed = (
        run(plan(size=1, concurrency=6, staleness=1.0, stages=stages), rounds=9)[0]
        for stages in ((), (TopK(1.0, smallest=0),))
    )
    np.testing.assert_allclose(packed.params["weight"], bare.params["weight"], rtol=1e-5)


# ------------------------------------------------------------ what fails


def test_a_client_that_fails_is_left_out_and_tried_again_in_the_next_round():
    engine = Chosen(3, 1, broken={2})
    result, told = run(plan(size=2), engine, 10)
    assert {row[1] for event in told for row in event.rows} == {0, 1, 3, 4, 5}
    assert 0 < sum(row["failed"] for row in result.history) <= 10
    assert [row["clients"] for row in result.history] == [2] * 10


def test_a_round_that_cannot_be_filled_counts_with_its_quorum():
    result, _ = run(plan(size=5, policy=Policy(quorum=0.8)), Chosen(3, 1, broken={2, 4}), 3)
    assert [(row["clients"], row["failed"]) for row in result.history] == [(4, 2)] * 3


def test_without_it_the_run_ends():
    with pytest.raises(RoundError, match=r"round 1 was void 2 times .*4 of 6 clients answered, the quorum is 5"):
        run(plan(size=5, policy=Policy(quorum=0.9, retries=1)), Chosen(3, 1, broken={2, 4}), 3)


def test_whoever_always_fails_does_not_hold_the_others_up():
    """A failure is a turn as well, or with a bound all would wait for it."""
    result, _ = run(plan(size=1, bound=1), Chosen(3, 1, broken={2}), 30)
    assert len(result.history) == 30


# ------------------------------------------------------------ replayed, and gone on with


@pytest.mark.parametrize("algorithm", [None, Scaffold(lr=0.1, epochs=1, batch_size=8)])
@pytest.mark.parametrize("bound", [None, 1])
def test_a_replay_has_the_same_bits(tmp_path, algorithm, bound):
    store, chosen = tmp_path / "runs.db", plan(algorithm, stages=(TopK(0.5, smallest=0),), size=2, bound=bound)
    result, told = run(chosen, Chosen(4, 7), 20, store=store)
    other, _ = run(chosen, Chosen(4, 8), 20, store=store)
    assert wire.digest(other.state) != wire.digest(result.state)
    for engine in ("inline", Chosen(2, 3)):
        again, retold = run(chosen, engine, 20, store=store, replay=result.id)
        assert again.id != result.id
        assert wire.digest([again.state, dict(again.memories)]) == wire.digest([result.state, dict(result.memories)])
        assert [sorted(row[:3] for row in event.rows) for event in retold] == [
            sorted(row[:3] for row in event.rows) for event in told
        ]
        assert [row["staleness"] for row in again.history] == [row["staleness"] for row in result.history]
    shorter, _ = run(chosen, "inline", 7, store=store, replay=result.id)
    assert len(shorter.history) == 7


def stopped_after(rounds):
    asked = iter([False] * rounds + [True])
    return lambda: next(asked)


def test_a_run_that_is_gone_on_with_replays_as_one(tmp_path):
    """Those at work start again from the version that they had."""
    store, chosen = tmp_path / "runs.db", plan(Scaffold(lr=0.1, epochs=1, batch_size=8), size=2)
    half, before = run(chosen, Chosen(4, 7), 20, store=store, stop=stopped_after(9))
    engine = Chosen(4, 9)
    whole, after = run(chosen, engine, 20, store=store, resume=half.id)
    assert whole.id == half.id
    assert len(before) == 9
    assert len(after) == 11
    # Four were at work when round 9 was over, less those who had just arrived; none of them had the newest model.
    old = [version for what, _, version in engine.log[:2] if what == "start"]
    assert len(old) == 2
    assert max(old) < 9
    assert min(version for event in after[:2] for _, _, version, _ in event.rows) < 9
    again, _ = run(chosen, "inline", 20, store=store, replay=whole.id)
    assert wire.digest([again.state, dict(again.memories)]) == wire.digest([whole.state, dict(whole.memories)])


def test_a_replay_that_is_gone_on_with_goes_on_as_a_replay(tmp_path):
    store, chosen = tmp_path / "runs.db", plan(size=2)
    result, _ = run(chosen, Chosen(4, 7), 20, store=store)
    half, _ = run(chosen, "inline", 20, store=store, replay=result.id, stop=stopped_after(9))
    whole, _ = run(chosen, Chosen(4, 1), 20, store=store, resume=half.id)
    assert wire.digest(whole.state) == wire.digest(result.state)


def test_a_run_that_is_gone_on_with_replays_what_it_did_before(tmp_path):
    store, chosen = tmp_path / "runs.db", plan(size=2)
    first, _ = run(chosen, Chosen(4, 7), 20, store=store)
    other, _ = run(chosen, Chosen(4, 8), 20, store=store)
    half, _ = run(chosen, Chosen(4, 9), 20, store=store, stop=stopped_after(9))
    with pytest.raises(ResumeError, match=f"run {half.id} replays no other run, not {first.id}: leave replay out"):
        run(chosen, "inline", 20, store=store, resume=half.id, replay=first.id)
    again, _ = run(chosen, "inline", 20, store=store, replay=first.id[:-1], stop=stopped_after(9))
    with pytest.raises(ResumeError, match=f"run {again.id} replays {first.id}, not {other.id}"):
        run(chosen, "inline", 20, store=store, resume=again.id, replay=other.id)
    whole, _ = run(chosen, "inline", 20, store=store, resume=again.id, replay=first.id)
    assert wire.digest(whole.state) == wire.digest(first.state)


def test_a_replay_that_ranks_were_started_with_can_be_restarted(tmp_path, monkeypatch):
    """By then the run that was the last one is another: the replay itself."""
    store, chosen = tmp_path / "runs.db", plan(size=2)
    result, _ = run(chosen, Chosen(4, 7), 20, store=store)
    monkeypatch.setenv("INSITU_LAUNCH", "again")
    half, _ = run(chosen, Spmd(), 20, store=store, replay=result.id, stop=stopped_after(9))
    assert half.status == "stopped"
    whole, _ = run(chosen, Spmd(), 20, store=store, replay=half.id)
    assert (whole.id, whole.status) == (half.id, "finished")
    assert wire.digest(whole.state) == wire.digest(result.state)


def test_a_run_and_its_replay_of_one_launch_are_two(tmp_path, monkeypatch):
    """Started again, each goes on with its own."""
    store, chosen = tmp_path / "runs.db", plan(size=2)
    monkeypatch.setenv("INSITU_LAUNCH", "both")
    first, _ = run(chosen, Spmd(), 4, store=store)
    again, _ = run(chosen, Spmd(), 4, store=store, replay=first.id)
    assert again.id != first.id
    assert run(chosen, Spmd(), 4, store=store)[0].id == first.id
    assert run(chosen, Spmd(), 4, store=store, replay=first.id)[0].id == again.id


def test_what_cannot_be_replayed_is_said(tmp_path):
    store, chosen = tmp_path / "runs.db", plan(size=2)
    result, _ = run(chosen, Chosen(4, 7), 5, store=store)
    with pytest.raises(ResumeError, match=f"run {result.id} has 5 rounds to be replayed, not 6: give rounds=5"):
        run(chosen, "inline", 6, store=store, replay=result.id)
    with pytest.raises(ResumeError, match=r"another plan \(buffered.size was 2, is 3\)"):
        run(plan(size=3), "inline", 5, store=store, replay=result.id)
    with pytest.raises(ResumeError, match=r"needs the store that holds the run: give store="):
        run(chosen, "inline", 5, replay=result.id)
    with pytest.raises(PlanError, match=r'only rounds in real time, Buffered\(…, clock="real"\)'):
        run(plan(size=2, clock="simulated"), "inline", 5, store=store, replay=result.id)


# ------------------------------------------------------------ what is refused


class Hidden(Stage):
    """A stage that shows the sum alone."""

    decodes = "sum"

    def encode(self, update: Update, memory, context):
        return update, memory


def test_what_does_not_fit_is_refused():
    with pytest.raises(PlanError, match=r"clock='sundial' to be one of 'simulated', 'real'"):
        Buffered(clock="sundial")
    with pytest.raises(PlanError, match="leave world out, or the clock"):
        Plan(FedAvg(), LogisticLearner(), buffered=Buffered(clock="real"), world=World(speed=1.0))
    with pytest.raises(PlanError, match=r"Hidden shows the sum alone: say Buffered\(…, staleness=0.0\)"):
        plan(stages=(Hidden(),))
    assert plan(stages=(Hidden(),), staleness=0.0).stops_early()
    with pytest.raises(PlanError, match=r"6 clients cannot fill a buffer of size=7: use Buffered\(6\)"):
        run(plan(size=7))


def test_an_engine_that_cannot_is_refused():
    class Rounds:
        def run(self, work):
            yield from ()

    with pytest.raises(PlanError, match=r'Rounds cannot do rounds with clock="real": use engine="processes"'):
        Traffic(plan(), Rounds(), clients(), "run", 0, {})


def test_the_simulated_clock_leaves_no_word_in_the_record():
    """Older runs of the same plan can still be resumed."""
    assert "clock" not in Buffered().config()
    assert Buffered(clock="real").config()["clock"] == "real"


def test_who_starts_is_drawn_from_those_who_may():
    traffic = Traffic(plan(size=1), AnyOrder(None, 4, 0), Many(), "run", 0, {})
    few, all_but_ten = set(range(1000)), set(range(10, 10**4))
    drawn: dict[str, list[int]] = {"many": [], "ten": []}
    for _ in range(300):
        drawn["many"].append(traffic._free(few))
        drawn["ten"].append(traffic._free(all_but_ten))
        traffic._started += 1
    assert min(drawn["many"]) >= 1000
    assert len(set(drawn["many"])) > 250
    assert set(drawn["ten"]) == set(range(10))


class Many:
    """Ten thousand clients, none of whom is looked at."""

    def __len__(self):
        return 10**4

    def id_at(self, place):
        return str(place)


def test_answers_carry_their_discount_only_here():
    """What a worker is asked says nothing of an age that nobody knows yet."""
    session = AnyOrder(None, 4, 0)
    traffic = Traffic(plan(size=1, staleness=1.0), session, clients(), "run", 0, {})
    session.arrived = lambda: Answer(session.started.pop(0), Update({"shared": {}}, {"shared": 1.0}))
    for version in range(6):
        landed = traffic.gather(version, {}, version + 1)
        (answer,) = landed.answers
        assert answer.task.discount == 1.0
        assert answer.late == 1 / (1 + version - answer.task.version)
        assert (answer.task.index, answer.task.block) == (0, 0)
    assert answer.task.version < 5
