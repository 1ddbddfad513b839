"""run(): resuming after a crash, stopping, watching, measuring, and what a result is worth."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.kmeans import KMeans
from insitu.algorithms.knn import KNN
from insitu.algorithms.scaffold import Scaffold
from insitu.core import events, tree, wire
from insitu.core.errors import DataError, PlanError, ResumeError, RoundError
from insitu.data.clients import Clients
from insitu.engines.inline import Inline
from insitu.engines.vectorized import Vectorized
from insitu.learners.numpy import LogisticLearner
from insitu.learners.torch import TorchLearner
from insitu.store.sqlite import SqliteStore

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Y = (X[:, 0] + 0.3 * RNG.normal(size=60) > 0).astype(int)
CLIENTS = Clients.from_arrays(X, Y, np.array_split(np.arange(60), 6), holdout=0.25)
PLAN = insitu.Plan(FedAvg(lr=0.2, batch_size=4), LogisticLearner())


def run(plan=PLAN, clients=CLIENTS, rounds=4, **more):
    return insitu.run(plan, clients, rounds=rounds, **{"engine": "inline", "store": None, "observers": [], **more})


def bits(result) -> bytes:
    return wire.encode([result.state, dict(sorted(result.memories.items()))])


def scaffold_plan():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))
    return insitu.Plan(
        Scaffold(lr=0.1, epochs=1, batch_size=4, server="momentum", server_lr=0.5),
        TorchLearner(net),
        cohort=insitu.Uniform(4),
        block=2,
    )


LANES = Vectorized(lanes=2, compile=False, device="cpu")


# ------------------------------------------------------------ the same seed, the same bits


@pytest.mark.parametrize("engine", ["inline", LANES], ids=["inline", "lanes"])
def test_the_same_seed_gives_the_same_bits(engine):
    a, b, c = (run(scaffold_plan(), engine=engine, seed=s) for s in (7, 7, 8))
    assert bits(a) == bits(b)
    assert bits(a) != bits(c)
    assert a.id != b.id


def test_the_global_generators_are_neither_read_nor_touched():
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    a = run(scaffold_plan(), engine=LANES)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.manual_seed(1)
    random.seed(1)
    assert bits(run(scaffold_plan(), engine=LANES)) == bits(a)


# ------------------------------------------------------------ resuming


@pytest.mark.parametrize("engine", ["inline", LANES], ids=["inline", "lanes"])
def test_a_run_in_two_halves_has_the_bits_of_one(engine, tmp_path):
    whole = run(scaffold_plan(), rounds=6, engine=engine, evaluate=(X, Y))
    half = run(scaffold_plan(), rounds=3, engine=engine, evaluate=(X, Y), store=tmp_path / "a.db")
    rest = run(scaffold_plan(), rounds=6, engine=None, evaluate=(X, Y), store=tmp_path / "a.db", resume=half.id)
    assert bits(rest) == bits(whole)
    assert rest.id == half.id
    drop = ("seconds",)
    for a, b in zip(rest.history, whole.history, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    assert rest.choices["engine"] == whole.choices["engine"]


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import insitu, test_run
from insitu.store.sqlite import SqliteStore
from datetime import timedelta

def slowly(event):
    print(type(event).__name__, event.run, event.round, flush=True)
    time.sleep(0.004)

insitu.run(
    test_run.scaffold_plan(), test_run.CLIENTS, rounds=40, engine=test_run.LANES, seed=5, evaluate_every=0,
    store=SqliteStore({path!r}, behind=timedelta(seconds=0.02)), observers=[slowly], resume={resume!r},
)
"""


def start_child(path, resume):
    code = textwrap.dedent(CHILD).format(tests=str(Path(__file__).parent), path=str(path), resume=resume)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.timeout(300)
def test_a_run_killed_three_times_ends_with_the_same_bits(tmp_path):
    """kill -9 at three random moments, during rounds and during writes; then to the end."""
    path, resume, reached = tmp_path / "runs.db", None, 0
    chance = random.Random(1)
    for _ in range(3):
        child = start_child(path, resume)
        started = child.stdout.readline().split()
        assert started[0] == "RunStarted"
        run_id = started[1]
        assert resume is None or (run_id == resume and int(started[2]) >= reached)
        committed = 0
        while committed < chance.randint(4, 9):
            committed += child.stdout.readline().startswith("RoundCommitted")
        time.sleep(chance.uniform(0, 0.05))
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL  # it had not finished by itself
        resume = run_id
        checkpoint = SqliteStore(path).load(run_id)
        reached = checkpoint.round if checkpoint else 0
    assert 0 < reached < 40
    end = insitu.run(
        scaffold_plan(), CLIENTS, rounds=40, engine=LANES, seed=5, evaluate_every=0, store=path, observers=[],
        resume=resume,
    )  # fmt: skip
    assert end.rounds == 40
    assert [row["round"] for row in end.history] == list(range(1, 41))
    whole = run(scaffold_plan(), rounds=40, engine=LANES, seed=5, evaluate_every=0)
    assert bits(end) == bits(whole)


def stored(tmp_path, **more):
    return run(rounds=2, store=tmp_path / "a.db", **more)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"plan": insitu.Plan(FedAvg(lr=0.3, batch_size=4), LogisticLearner())}, r"algorithm\.lr was 0.2, is 0.3"),
        ({"plan": insitu.Plan(FedAvg(lr=0.2, batch_size=4), LogisticLearner(l2=0.1))}, r"learner\.l2"),
        ({"plan": insitu.Plan(FedAvg(lr=0.2, batch_size=4), LogisticLearner(), cohort=insitu.Uniform(3))}, "cohort"),
        ({"seed": 1}, "seed=0, not 1"),
        ({"clients": Clients.from_arrays(X, Y, np.array_split(np.arange(60), 5))}, "clients=6, not 5"),
        ({"resume": "nonsense"}, "nonsense"),
        ({"store": None}, "store"),
    ],
)
def test_resuming_with_something_else_is_refused(tmp_path, change, says):
    first = stored(tmp_path)
    with pytest.raises(ResumeError, match=says):
        run(**{"rounds": 4, "store": tmp_path / "a.db", "resume": first.id, **change})
    again = run(rounds=4, store=tmp_path / "a.db", resume=first.id)  # nothing was harmed
    assert bits(again) == bits(run(rounds=4))


def test_resuming_a_finished_run_gives_its_result(tmp_path):
    first = stored(tmp_path)
    again = run(rounds=2, store=tmp_path / "a.db", resume=first.id)
    assert bits(again) == bits(first)
    assert list(again.history) == list(first.history)
    assert again.status == "finished"


def test_another_start_is_another_run(tmp_path):
    """The same config, but other first weights in the module: resuming would go on with a model that never was."""

    def plan(seed):
        torch.manual_seed(seed)
        return insitu.Plan(FedAvg(lr=0.2), TorchLearner(nn.Linear(4, 2)))

    first = run(plan(0), rounds=2, store=tmp_path / "a.db")
    with pytest.raises(ResumeError, match="first parameters"):
        run(plan(1), rounds=4, store=tmp_path / "a.db", resume=first.id)


def test_a_resumed_run_uses_the_choices_of_its_record(tmp_path):
    first = run(scaffold_plan(), rounds=2, engine=LANES, store=tmp_path / "a.db")
    again = run(scaffold_plan(), rounds=4, engine=None, store=tmp_path / "a.db", resume=first.id)
    assert (again.choices["engine"], again.choices["lanes"], again.choices["compile"]) == ("vectorized", 2, False)


def test_the_record_says_which_engine_the_last_rounds_ran_on(tmp_path):
    """A run resumed on another engine, and then resumed again without naming one, goes on with that one."""
    first = run(scaffold_plan(), rounds=2, engine=LANES, store=tmp_path / "a.db")
    run(scaffold_plan(), rounds=3, engine="inline", store=tmp_path / "a.db", resume=first.id)
    record = SqliteStore(tmp_path / "a.db").record(first.id)
    assert record["engine"]["name"] == "inline"
    assert record["rounds"] == 3


# ------------------------------------------------------------ stopping


def test_ctrl_c_stops_after_the_round_and_the_run_can_be_resumed(tmp_path):
    seen = []
    before = signal.getsignal(signal.SIGINT)
    once = iter([True])

    def first_time(event):
        seen.append(event)
        if isinstance(event, events.UpdatesArrived) and event.round == 3 and next(once, False):
            signal.raise_signal(signal.SIGINT)

    result = run(rounds=50, store=tmp_path / "a.db", observers=[first_time])
    assert (result.status, result.rounds) == ("stopped", 3)
    assert isinstance(seen[-1], events.RunStopped)
    assert f"resume='{result.id}'" in seen[-1].reason
    assert signal.getsignal(signal.SIGINT) is before
    assert SqliteStore(tmp_path / "a.db").record(result.id)["status"] == "stopped"
    rest = run(rounds=5, store=tmp_path / "a.db", resume=result.id)
    assert bits(rest) == bits(run(rounds=5))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(event):
        if isinstance(event, (events.UpdatesArrived, events.RoundCommitted)) and event.round == 3:
            signal.raise_signal(signal.SIGINT)

    seen = []
    with pytest.raises(KeyboardInterrupt):
        run(rounds=50, store=tmp_path / "a.db", observers=[seen.append, twice])
    rest = run(rounds=5, store=tmp_path / "a.db", resume=seen[0].run)
    assert bits(rest) == bits(run(rounds=5))


def test_outside_the_main_thread_signals_are_left_alone():
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    assert found[0].status == "finished"


# ------------------------------------------------------------ watching


def test_an_observer_that_raises_is_left_out_and_the_run_goes_on():
    calls = []

    def full(event):
        calls.append(event)
        raise OSError("no space left on device")

    seen = []
    with pytest.warns(UserWarning, match="no space left"):
        result = run(observers=[full, seen.append])
    assert len(calls) == 1
    assert isinstance(seen[-1], events.RunFinished)
    assert bits(result) == bits(run())


def test_an_observer_never_stops_a_run_even_if_warnings_are_errors():
    """This suite runs with -W error, as many do: the warning must not become what it warns of."""

    def full(event):
        raise OSError("no space left on device")

    assert run(observers=[full]).rounds == 4


def test_events_tell_the_story_in_order():
    seen = []
    run(rounds=2, observers=[seen.append], evaluate=(X, Y))
    names = [type(event).__name__ for event in seen]
    a_round = ["RoundStarted", "UpdatesArrived", "RoundCommitted", "Evaluated", "Evaluated"]
    assert names == ["RunStarted", *a_round, *a_round, "RunFinished"]
    assert [event.round for event in seen] == [0, *[1] * 5, *[2] * 5, 2]


def test_a_round_is_announced_before_its_clients_work():
    order = []

    class Watched:
        def __getattr__(self, name):
            return getattr(CLIENTS, name)

        def __len__(self):
            return len(CLIENTS)

        def at(self, place):
            order.append("work")
            return CLIENTS.at(place)

    def watch(event):
        if isinstance(event, events.RoundStarted):
            order.append("started")

    run(clients=Watched(), rounds=1, observers=[watch], evaluate_every=0)
    assert order.index("started") < len(order) - 1 - order[::-1].index("work")
    assert order[order.index("started") :].count("work") == 6


def test_a_notice_of_the_first_round_is_told():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(x + 0.01 * torch.rand(4))

    seen = []
    result = run(insitu.Plan(FedAvg(lr=0.1), TorchLearner(Noisy())), engine=LANES, observers=[seen.append])
    assert "sequential" in result.choices
    notices = [event for event in seen if isinstance(event, events.Notice)]
    assert len(notices) == 1
    assert "one after another" in notices[0].text


# ------------------------------------------------------------ history and evaluation


@pytest.mark.parametrize(("every", "rounds"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (10, [5]), (0, [])])
def test_evaluation_comes_when_asked_for_and_after_the_last_round(every, rounds):
    result = run(rounds=5, evaluate=(X, Y), evaluate_every=every)
    assert result.history.column("loss")[0] == rounds
    assert result.history.column("clients_accuracy")[0] == rounds
    assert result.history.column("train_loss")[0] == [1, 2, 3, 4, 5]


def test_history_has_a_row_a_round_with_these_columns():
    result = run(evaluate=(X, Y))
    names = {"round", "clients", "failed", "seconds", "bytes_up", "bytes_down", "train_loss", "train_accuracy"}
    names |= {"loss", "accuracy", "clients_loss", "clients_accuracy"}
    names |= {f"clients_{m}_{f}" for m in ("loss", "accuracy") for f in ("worst10", "p10", "p50", "p90")}
    assert [row["round"] for row in result.history] == [1, 2, 3, 4]
    assert set(result.history[-1]) == names
    assert result.history[-1]["bytes_up"] == 6 * 8 * (2 * 4 + 2)
    assert list(result.history.to_frame().index) == [1, 2, 3, 4]


def test_measurements_are_right():
    result = run(evaluate=(X, Y))
    scores = X @ result.params["weight"].T + result.params["bias"]
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    last = result.history[-1]
    assert last["loss"] == pytest.approx(-log_p[np.arange(60), Y].mean())
    assert last["accuracy"] == pytest.approx((scores.argmax(1) == Y).mean())
    right, sizes = [], []
    for client in CLIENTS:
        scores = client.holdout.x @ result.params["weight"].T + result.params["bias"]
        right.append((scores.argmax(1) == client.holdout.y).mean())
        sizes.append(len(client.holdout))
    assert last["clients_accuracy"] == pytest.approx(np.average(right, weights=sizes))
    assert last["clients_accuracy_p50"] == pytest.approx(np.median(right))
    assert last["clients_accuracy_worst10"] == pytest.approx(min(right))


def test_the_worst_tenth_are_those_with_the_largest_errors():
    """Also where the metric is an error that is not called loss."""
    y = X[:, 0] * np.repeat([1, 1, 1, 1, 1, 5], 10)
    clients = Clients.from_arrays(X, y, np.array_split(np.arange(60), 6), holdout=0.25)
    learner = TorchLearner(nn.Linear(4, 1), "mse", metrics=("mae",))
    last = run(insitu.Plan(FedAvg(lr=0.05), learner), clients).history[-1]
    assert last["clients_loss_worst10"] >= last["clients_loss_p90"]
    assert last["clients_mae_worst10"] >= last["clients_mae_p90"]


def test_clients_that_evaluate_are_drawn_apart_from_those_that_train():
    """Otherwise those that have just trained would always measure the model."""
    seen = []
    plan = insitu.Plan(FedAvg(lr=0.2), LogisticLearner(), cohort=insitu.Uniform(3), evaluate_cohort=insitu.Uniform(3))
    run(plan, rounds=10, observers=[seen.append])
    trained, measured = {}, {}
    for event in seen:
        if isinstance(event, events.UpdatesArrived):
            trained[event.round] = {row[0] for row in event.rows}
        if isinstance(event, events.Evaluated):
            measured[event.round] = set(event.clients)
    assert all(len(m) == 3 for m in measured.values())
    assert any(trained[round] != measured[round] for round in measured)


# ------------------------------------------------------------ failures


class Down:
    def __init__(self, down):
        self.down = down

    def __getattr__(self, name):
        return getattr(CLIENTS, name)

    def __len__(self):
        return len(CLIENTS)

    def at(self, place):
        if place in self.down:
            raise ConnectionError("the site is down")
        return CLIENTS.at(place)


def test_rounds_that_stay_void_end_the_run_with_an_error_that_says_why(tmp_path):
    plan = insitu.Plan(FedAvg(lr=0.2), LogisticLearner(), policy=insitu.Policy(quorum=0.8, retries=2))
    seen = []
    with pytest.raises(RoundError) as stopped:
        run(plan, Down({2, 4}), observers=[seen.append], store=tmp_path / "a.db")
    for part in ("round 1", "3 times", "4 of 6", "quorum is 5", "client '2'", "the site is down", "Policy("):
        assert part in str(stopped.value)
    assert sum(isinstance(event, events.RoundDiscarded) for event in seen) == 3
    assert SqliteStore(tmp_path / "a.db").record(seen[0].run)["status"] == "failed"
    result = run(plan, CLIENTS, store=tmp_path / "a.db", resume=seen[0].run)  # the sites are mended
    assert result.rounds == 4


def test_a_void_round_is_drawn_anew_and_the_run_goes_on():
    plan = insitu.Plan(
        FedAvg(lr=0.2), LogisticLearner(), cohort=insitu.Uniform(2), policy=insitu.Policy(quorum=1.0, retries=30)
    )
    seen = []
    result = run(plan, Down({2, 4}), rounds=6, observers=[seen.append])
    assert [row["clients"] for row in result.history] == [2] * 6
    assert any(isinstance(event, events.RoundDiscarded) for event in seen)


def test_poisson_rounds_may_be_empty():
    plan = insitu.Plan(FedAvg(lr=0.2), LogisticLearner(), cohort=insitu.Poisson(0.1), policy=insitu.Policy(retries=200))
    result = run(plan, rounds=6)
    assert result.rounds == 6
    assert all(row["clients"] >= 1 for row in result.history)


def test_a_run_that_dies_of_an_error_is_not_left_running_in_the_record(tmp_path):
    def learn(*_):
        raise insitu.core.errors.EngineError("the engine broke")

    class Session:
        choices: dict = {}  # noqa: RUF012

        def run(self, work):
            yield from learn()

        def close(self):
            pass

    class Broken(Inline):
        def open(self, setting):
            return Session()

    with pytest.raises(insitu.core.errors.EngineError):
        run(engine=Broken(), store=tmp_path / "a.db")
    (row,) = SqliteStore(tmp_path / "a.db").runs()
    assert row["status"] == "failed"


# ------------------------------------------------------------ results


def test_result_model_and_predict_agree():
    result = run(evaluate=(X, Y))
    np.testing.assert_array_equal(result.predict(X), result.model().predict(X))
    assert (result.predict(X) == Y).mean() == pytest.approx(result.history[-1]["accuracy"])
    assert set(result.params) == {"weight", "bias"}
    with pytest.raises(PlanError, match="'0' has no memory"):
        result.model("0")


def test_methods_without_a_learner_have_models_too():
    result = run(insitu.Plan(KMeans(k=2)), rounds=5)
    assert result.model().cluster_centers_.shape == (2, 4)
    assert set(result.predict(X)) == {0, 1}
    clients = Clients.from_arrays(X, Y, np.array_split(np.arange(60), 6))
    neighbours = run(insitu.Plan(KNN(k=1)), clients, rounds=1)
    np.testing.assert_array_equal(neighbours.predict(X), Y)


def test_without_a_store_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run()
    assert list(tmp_path.iterdir()) == []


def test_the_store_is_a_file_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = insitu.run(PLAN, CLIENTS, rounds=1, engine="inline", observers=[])
    assert SqliteStore("runs/insitu.db").record(result.id)["status"] == "finished"


def test_a_plan_that_cannot_run_leaves_no_file_behind(tmp_path):
    with pytest.raises(PlanError):
        run(engine="inlin", store=tmp_path / "a.db")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ arguments

ARGUMENTS = {
    "no plan": ({"plan": FedAvg()}, PlanError, "Plan("),
    "no clients": ({"clients": (X, Y)}, PlanError, "Clients.from_arrays"),
    "no rounds": ({"rounds": 0}, PlanError, "rounds=0"),
    "half a round": ({"rounds": 2.5}, PlanError, "rounds=2.5"),
    "a seed of text": ({"seed": "1"}, PlanError, "seed='1'"),
    "an unknown engine": ({"engine": "vectorised"}, PlanError, "did you mean 'vectorized'"),
    "no engine": ({"engine": 5}, PlanError, "engine=5"),
    "an engine that cannot": ({"engine": "vectorized"}, PlanError, "computes with NumPy"),
    "every half round": ({"evaluate_every": 0.5}, PlanError, "evaluate_every=0.5"),
    "unequal lengths": ({"evaluate": (X, Y[:5])}, DataError, "60 examples and y 5"),
    "an empty test set": ({"evaluate": (X[:0], Y[:0])}, DataError, "empty"),
    "NaN in the test set": ({"evaluate": (X * np.nan, Y)}, DataError, "NaN"),
    "labels unknown": ({"evaluate": (X, Y + 5)}, DataError, "central test set"),
    "a cohort too large": (
        {"plan": insitu.Plan(FedAvg(), LogisticLearner(), cohort=insitu.Uniform(7))}, PlanError, "from 6",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_bad_argument_is_refused_before_anything_starts(case):
    change, error, says = ARGUMENTS[case]
    with pytest.raises(error, match=re.escape(says)):
        run(**change)


def test_the_fastest_engine_is_named():
    seen = []
    with torch.random.fork_rng(devices=[]):
        result = run(insitu.Plan(FedAvg(), TorchLearner(nn.Linear(4, 2))), engine=None, observers=[seen.append])
    assert result.choices["engine"] == seen[0].engine == "auto"
    assert result.choices["inner"] == "vectorized"
    assert run(engine=None).choices["inner"] == "inline"
    assert tree.not_finite(result.params) is None
