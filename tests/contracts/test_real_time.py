"""Rounds in real time on every engine found on disk: who arrives is left to chance, what comes of it is not."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import threadpoolctl
import torch
from contract_cases import BATCH, engines, far, flat, in_process, learner, ragged, worker_engines
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.local_sgd import LocalSGD
from insitu.algorithms.scaffold import Scaffold
from insitu.compress.topk import TopK
from insitu.core import events, wire
from insitu.core.errors import ClientError, RoundError
from insitu.data.clients import Clients
from insitu.engines.auto import Auto
from insitu.engines.https import Https
from insitu.engines.inline import Inline
from insitu.engines.processes import Processes
from insitu.engines.processes.channel import Tag
from insitu.engines.processes.hand import Hand
from insitu.engines.processes.pool import Pool
from insitu.learners.numpy import LogisticLearner
from insitu.learners.torch import TorchLearner
from insitu.rounds.buffered import Buffered

METHODS = {
    "fedavg": FedAvg(lr=0.1, epochs=2, batch_size=BATCH),
    "local_sgd": LocalSGD(lr=0.1, steps=3, batch_size=BATCH),
    "scaffold": Scaffold(lr=0.1, steps=3, batch_size=BATCH),
}
EVERYONE = Buffered(size=8, bound=0, clock="real")
USUAL = [("processes-3", None), ("auto", 1)]


def plan(method="fedavg", buffered=None, dtype=torch.float32, **more):
    return insitu.Plan(METHODS[method], learner=learner("perceptron", dtype), buffered=buffered, **more)


def run(chosen, engine, rounds=4, clients=None, **more):
    told = []
    clients = ragged("perceptron", holdout=0.3) if clients is None else clients
    result = insitu.run(
        chosen, clients, rounds=rounds, engine=engine, seed=11, **{"store": None, "observers": [told.append], **more}
    )
    return result, [event for event in told if isinstance(event, events.Arrivals)]


def all_of(result):
    return wire.digest([result.state, dict(result.memories)])


# ------------------------------------------------------------ the identities


def combinations():
    """All; by default of the engines that start processes one."""
    found = []
    for engine in engines():
        for method in METHODS:
            usual = engine in in_process() or (engine, method) in (("processes-2", "scaffold"), ("auto", "fedavg"))
            found.append(pytest.param(engine, method, marks=() if usual else (pytest.mark.long,)))
    return [case for case in found if case.values[0] != "inline"]


@pytest.mark.parametrize(("engine", "method"), combinations())
def test_a_bound_of_zero_and_all_answers_is_inline_to_the_bit(engine, method):
    """Dropout, two blocks, evaluation in between, and float32: what clients compute is what inline computes."""
    ordinary, none = run(plan(method, block=3), Inline())
    result, told = run(plan(method, EVERYONE, block=3), engines()[engine])
    assert all_of(result) == all_of(ordinary)
    assert none == []
    assert [len(event.rows) for event in told] == [8] * 4
    # With lanes many are evaluated at once, which is equal but for rounding.
    np.testing.assert_allclose(
        [row["clients_loss"] for row in result.history], [row["clients_loss"] for row in ordinary.history], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("engine", "bound"),
    [
        pytest.param(engine, bound, marks=() if (engine, bound) in USUAL else (pytest.mark.long,))
        for engine in (*worker_engines(), "auto")
        for bound in (None, 1)
    ],
)
def test_a_replay_on_inline_has_the_same_bits(engine, bound, tmp_path):
    chosen = plan("scaffold", Buffered(size=2, bound=bound, clock="real"), stages=(TopK(0.5, smallest=0),))
    result, told = run(chosen, engines()[engine], 12, store=tmp_path / "runs.db")
    assert all(row["clients"] == 2 for row in result.history)
    for other in (Inline(), Processes(workers=2)):
        again, _ = run(chosen, other, 12, store=tmp_path / "runs.db", replay=result.id)
        assert all_of(again) == all_of(result)
    assert len(told) == 12


@pytest.fixture
def two_threads():
    """This process computes with two threads, as most do, where worker processes have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def wide():
    """A layer of 784 inputs and 256 outputs, whose products several threads sum in another order than one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(96, 784)).astype(np.float32), rng.integers(10, size=96)
    clients = Clients.from_arrays(x, y, np.array_split(np.arange(96), 3))
    buffered = Buffered(size=1, clock="real")
    return insitu.Plan(FedAvg(lr=0.1, epochs=1, batch_size=32), TorchLearner(module), buffered=buffered), clients


def test_a_replay_has_the_same_bits_whatever_threads_this_process_has(two_threads, tmp_path):
    chosen, clients = wide()
    result, _ = run(chosen, Processes(workers=2), 6, clients, store=tmp_path / "runs.db")
    for other in (engines()[name] for name in in_process() if name != "auto"):  # which takes workers here
        again, _ = run(chosen, other, 6, clients, store=tmp_path / "runs.db", replay=result.id)
        assert all_of(again) == all_of(result), other
        assert torch.get_num_threads() == 2


class Counted(LogisticLearner):
    """A learner that notes the threads of NumPy's library."""

    seen = None

    def check(self, client):
        self.seen.append([pool["num_threads"] for pool in threadpoolctl.threadpool_info()])
        super().check(client)


@pytest.mark.parametrize("engine", ["inline", "debug"])
def test_numpy_has_one_thread_as_well(engine, monkeypatch):
    monkeypatch.setattr(Counted, "seen", [])
    chosen, clients = three(Counted())
    with threadpoolctl.threadpool_limits(2):
        run(chosen, engine, 3, clients)
        after = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
    before, *at_work = Counted.seen  # the first look at the clients is no work
    assert len(at_work) == 3
    assert {count for counts in at_work for count in counts} == {1}
    assert set(before) == set(after) == {2}


@pytest.mark.parametrize("engine", in_process())
def test_in_one_process_the_order_is_known(engine):
    """One seat: whoever started first arrives first."""
    if engine == "auto" and (os.cpu_count() or 1) > 1:
        return  # it takes workers here
    chosen = plan(buffered=Buffered(size=2, concurrency=5, clock="real"))
    expected, told = run(chosen, Inline(), 6)
    result, retold = run(chosen, engines()[engine], 6)
    assert all_of(result) == all_of(expected)
    assert [[row[:3] for row in event.rows] for event in retold] == [[row[:3] for row in event.rows] for event in told]


# ------------------------------------------------------------ whoever is faster


class Slow(LogisticLearner):
    """A learner that takes its time with client 1."""

    seconds = 0.3

    def check(self, client):
        if client.id == "1":
            time.sleep(self.seconds)
        super().check(client)


class Deadly(LogisticLearner):
    """A learner that kills its worker, once, at client 1."""

    def check(self, client):
        path = os.environ["INSITU_TEST_ONCE"]
        if client.id == "1" and os.getpid() != int(os.environ["INSITU_TEST_PARENT"]) and not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        super().check(client)


class Unable(LogisticLearner):
    """A learner that cannot do with client 1."""

    def check(self, client):
        if client.id == "1":
            raise ValueError("no labels")
        super().check(client)


def three(learner, **more):
    """A plan of one answer a round, and three clients of nine examples."""
    buffered = Buffered(**{"size": 1, "clock": "real", **more})
    return insitu.Plan(METHODS["fedavg"], learner, buffered=buffered, evaluate_every=0), ragged("perceptron", (9, 9, 9))


@pytest.mark.parametrize("bound", [None, 2])
def test_a_slow_worker_contributes_less(bound, tmp_path):
    """Counts, not seconds: without a bound the others go on; with one they are three ahead at most."""
    chosen, clients = three(Slow(), bound=bound)
    result, told = run(chosen, Processes(workers=3), 24, clients, store=tmp_path / "runs.db")
    counts = {client: sum(event.rows[0][0] == client for event in told) for client in "012"}
    if bound is None:  # of the other two, one may be held up by what else this machine does
        assert counts["1"] < max(counts["0"], counts["2"])
    else:
        assert max(row["lead"] for row in result.history) == 3
        assert max(counts.values()) - counts["1"] <= 3
        assert counts["1"] >= 6
    slow = [event.rows[0][3] for event in told if event.rows[0][0] == "1"]
    assert all(seconds >= Slow.seconds for seconds in slow)
    again, _ = run(chosen, Inline(), 24, clients, store=tmp_path / "runs.db", replay=result.id)
    assert all_of(again) == all_of(result)


def test_a_worker_that_dies_costs_its_client_one_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("INSITU_TEST_ONCE", str(tmp_path / "once"))
    monkeypatch.setenv("INSITU_TEST_PARENT", str(os.getpid()))
    chosen, clients = three(Deadly())
    result, told = run(chosen, Processes(workers=2), 20, clients)
    assert sum(row["failed"] for row in result.history) == 1
    assert {event.rows[0][0] for event in told} == {"0", "1", "2"}
    assert (tmp_path / "once").exists()


class Fails(LogisticLearner):
    """A learner that cannot do with client 1 where the test says so."""

    def check(self, client):
        if client.id == "1" and "INSITU_TEST_FAILS" in os.environ:
            raise ValueError("no labels")
        super().check(client)


@pytest.mark.parametrize("engine", ["inline", Processes(workers=2)], ids=["inline", "processes"])
def test_a_replay_in_which_a_client_fails_is_none(engine, tmp_path, monkeypatch):
    """It would go on with other bits than those of the run that it is said to be."""
    chosen, clients = three(Fails(), bound=0)
    result, told = run(chosen, Inline(), 6, clients, store=tmp_path / "runs.db")
    round = next(event.round for event in told if event.rows[0][0] == "1")
    monkeypatch.setenv("INSITU_TEST_FAILS", "yes")
    said = rf"round {round} cannot be replayed: client '1' \(place 1, from version \d\).*ValueError: no labels"
    with pytest.raises(RoundError, match=said):
        run(chosen, engine, 6, clients, store=tmp_path / "runs.db", replay=result.id)


def test_all_workers_are_there_before_anyone_starts(monkeypatch):
    """Or the first to be up would do the others' share."""
    opened, ready = [], Pool._ready
    monkeypatch.setattr(Pool, "_ready", lambda self, hand, told: (opened.append(hand.pid), ready(self, hand, told)))
    posted = Hand.post

    def watched(self, frame):
        if frame.tag is Tag.BLOCK:
            opened.append("work")
        posted(self, frame)

    monkeypatch.setattr(Hand, "post", watched)
    chosen, clients = three(LogisticLearner())
    run(chosen, Processes(workers=3), 3, clients)
    assert opened.index("work") == 3


def test_debug_says_which_client_it_was():
    chosen, clients = three(Unable())
    with pytest.raises(ClientError, match=r"client '1', round .*ValueError: no labels"):
        run(chosen, "debug", 9, clients)
    result, told = run(chosen, "inline", 9, clients)
    assert {event.rows[0][0] for event in told} == {"0", "2"}
    assert sum(row["failed"] for row in result.history) > 0


# ------------------------------------------------------------ chosen by itself


def test_auto_takes_workers_from_the_start():
    result, _ = run(plan(buffered=Buffered(size=1, clock="real")), Auto(), 3)
    assert result.choices["engine"] == "auto"
    assert result.choices["workers"] >= 1
    assert far(flat(result), flat(run(plan(), Inline(), 3)[0])) > 0


def test_sites_are_no_workers():
    """The engine that is opened inside a coordinator says so, and what to use."""
    https = Https(object(), "run", {}, {}, lambda call: call)
    assert "use engine='processes' or 'spmd'" in https.refuses(plan(buffered=Buffered(size=1, clock="real")))
    assert "buffered is for simulations" in https.refuses(plan(buffered=Buffered(size=1)))
    assert https.refuses(plan()) is None


def test_workers_are_no_more_than_can_be_at_work(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    result, _ = run(plan(buffered=Buffered(size=1, concurrency=2, clock="real")), Processes(), 2)
    assert result.choices["workers"] == 2
