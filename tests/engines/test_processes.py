"""Worker processes: the same bits for any number of them, and nobody who dies takes the run along or stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDClassifier
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.gossip import Gossip
from insitu.algorithms.knn import KNN
from insitu.algorithms.scaffold import Scaffold
from insitu.core import tree
from insitu.core.errors import EngineError, PlanError
from insitu.core.mean import Mean
from insitu.core.protocols import Setting
from insitu.core.types import Answer, ByClient, Failure, Folded, Task
from insitu.data.clients import Clients
from insitu.engines.inline import Inline
from insitu.engines.processes import Processes, shared
from insitu.engines.processes.hand import Hand
from insitu.engines.processes.pack import Packed, pack, unpack
from insitu.engines.processes.session import ProcessesSession
from insitu.engines.processes.shared import Shelf, mapped
from insitu.engines.vectorized import Vectorized
from insitu.learners.numpy import LogisticLearner
from insitu.learners.sklearn import SklearnLearner
from insitu.learners.torch import TorchLearner
from insitu.rounds.buffered import Buffered

BLOCKS = [range(3), range(3, 6), range(6, 8)]
SIZES = (30, 8, 21, 5, 12, 17, 26, 9)
EVERYONE = range(len(SIZES))


# ------------------------------------------------------------ who is there


def children(parent: int) -> set[int]:
    """The child processes of a process, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            ppid = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(ppid) == parent:
            found.add(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds: float = 10.0) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    """No process, zombie, thread, file in shared memory or open descriptor is left that was not there before."""

    def here() -> tuple[object, ...]:
        threads = {t for t in threading.enumerate() if "_forward" in t.name}
        # A database server and simulators of other tests come and go there as well.
        shared = {name for name in os.listdir("/dev/shm") if not name.startswith(("PostgreSQL", "insitu-sim"))}
        return shared, len(os.listdir("/proc/self/fd")), threads, children(os.getpid())

    before = here()
    yield
    assert here() == before


# ------------------------------------------------------------ plans and clients


def rows(n: int = sum(SIZES)) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n, 6))
    return x, np.digitize(x[:, 0] + x[:, 1], [-0.6, 0.6])


def clients(holdout: float = 0.25) -> Clients:
    ends = np.cumsum(SIZES)
    parts = [np.arange(end - size, end) for size, end in zip(SIZES, ends, strict=True)]
    return Clients.from_arrays(*rows(), parts, holdout=holdout)


def loaded(trouble) -> Clients:
    """The same clients, each loaded after ``trouble(place)``."""
    ends = np.cumsum(SIZES)
    x, y = rows()

    def load(place):
        trouble(place)
        return x[ends[place] - SIZES[place] : ends[place]], y[ends[place] - SIZES[place] : ends[place]]

    return Clients.lazy(range(len(SIZES)), load)


def plan(algorithm=None, **more) -> insitu.Plan:
    """Without torch, so that workers start in a second."""
    learner = LogisticLearner(6, 3)
    return insitu.Plan(algorithm or FedAvg(lr=0.1, epochs=2), learner=learner, **{"block": 3, **more})


def network(forward=None) -> TorchLearner:
    class Network(nn.Module):  # local, so that it travels by value
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.nn.functional.dropout(torch.relu(self.first(x)), 0.2, self.training)
            return self.last(x if forward is None else forward(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return TorchLearner(Network().double())


def train(chosen, population, engine, rounds: int = 3, **more) -> insitu.Result:
    more = {"store": None, "observers": (), **more}
    return insitu.run(chosen, population, rounds=rounds, engine=engine, seed=7, **more)


def flat(result: insitu.Result) -> np.ndarray:
    return tree.flatten({"shared": result.variables.shared, "buffers": result.variables.buffers})


def same(a: insitu.Result, b: insitu.Result) -> None:
    """The same bits, memories and metrics."""
    np.testing.assert_array_equal(flat(a), flat(b))
    assert set(a.memories) == set(b.memories)
    for client, memory in a.memories.items():
        tree.map(np.testing.assert_array_equal, tree.asnumpy(memory), tree.asnumpy(b.memories[client]))
    for ours, theirs in zip(a.history, b.history, strict=True):
        assert {**ours, "seconds": 0} == pytest.approx({**theirs, "seconds": 0}, nan_ok=True)


def setting(chosen, population, notify=pytest.fail, **choices) -> Setting:
    return Setting(chosen, population, {}, 1, 7, choices, notify)


def tasks(chosen, population, round: int = 1, size: int = 3, places=EVERYONE):
    message = chosen.algorithm.ask(chosen.algorithm.init(chosen.learner.init(7)), round)
    for i, place in enumerate(places):
        client = population.id_at(place)
        told = message.for_client(client) if isinstance(message, ByClient) else message
        yield Task("run", round, 0, "train", client, told, 7, i, place, i // size)


class Failures(list):
    """An observer that keeps the failures of clients."""

    def __call__(self, event) -> None:
        if type(event).__name__ == "ClientFailed":
            self.append(event)


# ------------------------------------------------------------ reading ahead


def test_a_worker_reads_the_next_blocks_clients_while_it_works_on_this_one(tmp_path):
    ends, (x, y) = np.cumsum(SIZES), rows()
    log, here = str(tmp_path / "log"), os.getpid()

    def load(place):
        if os.getpid() != here:
            with open(log, "a") as file:
                file.write(f"{place} {threading.current_thread().name}\n")
        return x[ends[place] - SIZES[place] : ends[place]], y[ends[place] - SIZES[place] : ends[place]]

    def made(prefetch):
        return Clients.lazy(range(len(SIZES)), load, prefetch=prefetch)

    chosen = plan(block=2)
    expected = train(chosen, made(False), Inline(), 2)
    same(expected, train(chosen, made(True), Processes(workers=1), 2))
    lines = [line.split(" ", 1) for line in Path(log).read_text().splitlines()]
    by_thread = [int(place) for place, thread in lines if thread == "insitu prefetch"]
    # Four blocks of two: all but those that the worker came to before its thread did, and never one twice in a round.
    assert by_thread
    assert sorted(int(place) for place, _ in lines) == sorted([*EVERYONE] * 2)


# ------------------------------------------------------------ the same answer


def test_any_number_of_workers_gives_the_bits_of_lanes_in_one_process():
    """With dropout, memories and a last block of one: the number of workers must not show anywhere."""
    chosen = insitu.Plan(Scaffold(lr=0.1, epochs=2), learner=network(), block=3, cohort=insitu.Uniform(7))
    expected = train(chosen, clients(), Vectorized(lanes=2, compile=False, device="cpu"))
    inline = train(chosen, clients(), Inline())
    assert len(expected.memories) == 8
    assert np.abs(flat(expected) - flat(inline)).max() <= 1e-10
    for workers in (1, 2, 3):
        result = train(chosen, clients(), Processes(workers=workers, lanes=2, compile=False))
        same(expected, result)
        kept = {"workers": workers, "inner": "vectorized", "lanes": 2, "compile": False, "device": "cpu", "threads": 1}
        assert {name: result.choices[name] for name in kept} == kept


@pytest.mark.parametrize(
    "make", [lambda: TorchLearner(nn.Linear(6, 3).float()), pytest.param(network, marks=pytest.mark.long)]
)
def test_fused_steps_have_the_same_bits_on_any_number_of_workers(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        chosen = insitu.Plan(FedAvg(lr=0.1, epochs=2, batch_size=4), learner=make(), block=2)
    expected = train(chosen, clients(), Vectorized(lanes=4, compile=False, device="cpu"), rounds=2)
    assert expected.choices["step"] == "fused"
    for workers in (1, 2, 4):
        same(expected, train(chosen, clients(), Processes(workers=workers, lanes=4, compile=False), rounds=2))


def test_what_the_first_block_shows_of_a_model_holds_for_all_workers():
    """A model that cannot be run in lanes: one process notices in its first block and folds the others in order."""

    def branch(x):
        return x * 2 if float(x.detach().sum()) > 0 else x

    chosen = insitu.Plan(FedAvg(lr=0.1), learner=network(branch), block=3, cohort=insitu.Uniform(7))
    expected = train(chosen, clients(), Vectorized(lanes=2, compile=False, device="cpu"), 2)
    heard: list[str] = []

    class Overheard(Processes):
        def open(self, setting):
            return super().open(replace(setting, notify=heard.append))

    result = train(chosen, clients(), Overheard(workers=2, lanes=2, compile=False), 2)
    same(expected, result)
    assert "sequential" in result.choices
    assert [text for text in heard if "cannot run in lanes" in text] == heard[:1]
    assert len(heard) == 1


@pytest.mark.parametrize(
    "algorithm", [Scaffold(lr=0.1, epochs=2), Gossip(lr=0.1, epochs=1)], ids=["folded", "each for itself"]
)
def test_without_torch_the_bits_are_those_of_inline(algorithm):
    chosen = plan(algorithm)
    expected = train(chosen, clients(), Inline())
    assert expected.history[-1]["clients_accuracy"] > 0  # evaluated on the workers as well
    same(expected, train(chosen, clients(), Processes(workers=2)))


def test_sklearn_and_over_selection_and_another_number_of_workers():
    """Whoever is there first, the round is complete with the same clients."""
    learner = SklearnLearner(SGDClassifier(loss="log_loss"))
    policy = insitu.Policy(over_select=0.5)
    chosen = insitu.Plan(FedAvg(), learner=learner, block=3, cohort=insitu.Uniform(5), policy=policy)
    expected = train(chosen, clients(), Inline())
    assert [row["clients"] for row in expected.history] == [5, 5, 5]
    same(expected, train(chosen, clients(), Processes(workers=3)))


def test_predictions_are_asked_from_the_workers():
    chosen = insitu.Plan(KNN(k=3), block=3)
    result = train(chosen, clients(0), Processes(workers=2), 1, evaluate=rows(40))
    expected = train(chosen, clients(0), Inline(), 1, evaluate=rows(40))
    assert result.history[-1]["accuracy"] == expected.history[-1]["accuracy"] > 0.8


def test_asynchronous_rounds_have_the_same_bits():
    """Tasks of one block then carry messages of several versions."""
    chosen = plan(buffered=Buffered(size=4, concurrency=8))
    same(train(chosen, clients(), Inline(), 4), train(chosen, clients(), Processes(workers=2), 4))


def test_a_resumed_run_keeps_what_was_chosen(tmp_path):
    chosen, store = plan(), tmp_path / "runs.db"
    said: list[str] = []
    session = Processes().open(setting(plan(block=8), clients(), said.append, workers=2))
    with closing(session):
        assert session.choices == {"workers": 2, "inner": "inline"}
        assert said == []
    first = train(chosen, clients(), Processes(workers=2, lanes=4), 2, store=store)
    again = train(chosen, clients(), None, 3, store=store, resume=first.id)
    assert again.choices == {"engine": "processes", "workers": 2, "inner": "inline"}
    np.testing.assert_array_equal(flat(again), flat(train(chosen, clients(), Inline(), 3)))


def test_workers_are_as_many_as_cores_or_blocks_and_say_so(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    said: list[str] = []
    with closing(Processes(lanes=4).open(setting(plan(block=8), clients(), said.append))) as session:
        assert session.choices["workers"] == 1
    assert "a round is 1 block of clients, so of 16 workers" in said[0]
    assert "lanes=4 has no effect" in said[1]


# ------------------------------------------------------------ failures


def test_a_client_that_cannot_be_loaded_is_one_failure():
    def trouble(place):
        if place == 4:
            print("the disk is on fire")
            raise OSError("the disk is gone")

    failures = Failures()
    result = train(plan(), loaded(trouble), Processes(workers=2), 2, observers=[failures])
    same(train(plan(), loaded(trouble), Inline(), 2), result)
    assert [(f.client, f.round) for f in failures] == [("4", 1), ("4", 2)]
    assert "OSError: the disk is gone" in failures[0].error


@pytest.mark.parametrize(
    ("death", "words"),
    [
        (lambda: os._exit(3), "ended with exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lambda: sys.exit("enough"), "SystemExit: enough"),
    ],
    ids=["os._exit", "SIGKILL", "sys.exit"],
)
def test_a_worker_that_dies_costs_its_block_one_round(tmp_path, capfd, death, words):
    """And the others' answers are those of a round without that block."""
    once = tmp_path / "done"

    def trouble(place):
        if place == 4 and not once.exists():
            once.touch()
            print("last words", flush=True)
            death()

    failures = Failures()
    result = train(plan(), loaded(trouble), Processes(workers=2), 2, observers=[failures])
    assert [(row["clients"], row["failed"]) for row in result.history] == [(5, 3), (8, 0)]
    assert [(f.client, f.round) for f in failures] == [("3", 1), ("4", 1), ("5", 1)]
    assert all(words in f.error for f in failures)
    assert "last words" in capfd.readouterr().err

    def without(place):
        if place in BLOCKS[1] and not once.exists():
            raise OSError("away")

    once.unlink()

    class Back:
        def __call__(self, event):
            if type(event).__name__ == "RoundCommitted":
                once.touch()

    same(train(plan(), loaded(without), Inline(), 2, observers=[Back()]), result)


def test_a_worker_killed_from_outside_names_its_number(tmp_path):
    def trouble(place):
        if place == 1 and not (tmp_path / "pid").exists():  # client 0 is looked at by the parent as well
            (tmp_path / "pid").write_text(str(os.getpid()))
            time.sleep(60)

    def kill():
        assert until((tmp_path / "pid").exists)
        time.sleep(0.2)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    failures = Failures()
    result = train(plan(), loaded(trouble), Processes(workers=2), 2, observers=[failures])
    killer.join()
    pid = (tmp_path / "pid").read_text()
    assert [f.client for f in failures] == ["0", "1", "2"]
    assert f"EngineError: worker process {pid} was killed by SIGKILL" in failures[0].error
    assert result.history[-1]["clients"] == 8


def choosy() -> Mean:
    """Cannot add one client's update: a failure of the engine's, not of the client's."""

    class Choosy(Mean):
        def add(self, accumulator, update, client):
            if client == "4":
                raise ArithmeticError("not this one")
            return super().add(accumulator, update, client)

    return Choosy()


def opaque() -> Mean:
    """Its sums cannot leave the process."""

    class Opaque(Mean):
        def add(self, accumulator, update, client):
            total = super().add(accumulator, update, client)
            return {**total, "lock": threading.Lock()} if client == "7" else total

    return Opaque()


@pytest.mark.parametrize(("reduce", "lost"), [(choosy(), BLOCKS[1]), (opaque(), BLOCKS[2])], ids=["adds", "tells"])
def test_an_engine_that_fails_in_a_worker_costs_its_block(reduce, lost):
    chosen = plan(reduce=reduce)
    with closing(Processes(workers=1).open(setting(chosen, clients()))) as session:
        for round in (1, 2):
            told = list(session.run(tasks(chosen, clients(), round)))
            failures = [item for item in told if isinstance(item, Failure)]
            assert [failure.client for failure in failures] == [str(place) for place in lost]
            assert len([item for item in told if isinstance(item, Folded)]) == 2
            assert "Traceback" in failures[0].trace


# ------------------------------------------------------------ this process beside its workers


def beside(chosen, population) -> ProcessesSession:
    """One worker, and this process."""
    given = setting(chosen, population)
    options = {"lanes": None, "compile": "auto", "device": "cpu"}
    return ProcessesSession(given, 1, options, here=Inline().open(given))


def test_this_process_works_beside_its_workers(tmp_path):
    def trouble(place):
        (tmp_path / f"{place} {os.getpid()}").touch()
        time.sleep(0.2)

    chosen, population = plan(), loaded(trouble)
    with closing(beside(chosen, population)) as session:
        told = list(session.run(tasks(chosen, population, size=1)))
    assert session.choices["workers"] == 2
    assert [place_of(item) for item in told] == list(range(8))
    owners = {int(name.split()[1]) for name in os.listdir(tmp_path)}
    assert len(owners) == 2
    assert os.getpid() in owners


def test_a_block_that_waited_for_a_worker_that_died_is_not_lost(tmp_path):
    parent = os.getpid()

    def trouble(place):
        if os.getpid() != parent and not (tmp_path / "died").exists():
            time.sleep(1.0)  # this process has taken a block by now, and given the worker another
            (tmp_path / "died").touch()
            os._exit(3)
        time.sleep(0.3)

    chosen, population = plan(), loaded(trouble)
    with closing(beside(chosen, population)) as session:
        told = list(session.run(tasks(chosen, population, size=1)))
    assert len([item for item in told if isinstance(item, Failure)]) == 1
    assert sorted(place_of(item) for item in told) == list(range(8))


def place_of(item) -> int:
    if isinstance(item, Failure):
        return item.index
    return item.task.index if isinstance(item, Answer) else item.reports[0].index


# ------------------------------------------------------------ the way that tasks and answers go


def test_tasks_are_pulled_when_there_is_room_and_answers_come_in_order():
    chosen, population = plan(), clients()
    pulled = 0

    def many():
        nonlocal pulled
        for task in tasks(chosen, population, places=[place % 8 for place in range(600)]):
            pulled += 1
            yield task

    with closing(Processes(workers=2).open(setting(chosen, population))) as session:
        seen = []
        for item in session.run(many()):
            seen.append(item.block)
            assert pulled <= (len(seen) + 2 * 4) * 3 + 1
        assert seen == list(range(200))


def test_closing_early_cancels_and_the_next_call_hears_nothing_of_it(tmp_path):
    def trouble(place):
        (tmp_path / str(place)).touch()
        time.sleep(0.3 if place > 2 else 0)

    chosen, population = plan(), loaded(trouble)
    with closing(Processes(workers=2).open(setting(chosen, population))) as session:
        answers = session.run(tasks(chosen, population, 1))
        assert next(answers).block == 0
        answers.close()
        asked = [place for place in range(8) if (tmp_path / str(place)).exists()]
        told = list(session.run(tasks(chosen, population, 2, places=[2, 1, 0], size=1)))
        assert [item.block for item in told] == [0, 1, 2]
        assert [item.reports[0].client for item in told] == ["2", "1", "0"]
        after = [place for place in range(8) if (tmp_path / str(place)).exists()]
        assert len(after) <= len(asked) + 2  # a worker ends the client it is at, not its block


def test_closing_does_not_wait_for_a_worker_that_does_not_come_back():
    chosen, population = plan(), loaded(lambda place: time.sleep(600 if place == 7 else 0))
    session = Processes(workers=2).open(setting(chosen, population))
    answers = session.run(tasks(chosen, population))
    assert [next(answers).block, next(answers).block] == [0, 1]
    answers.close()
    began = time.monotonic()
    session.close()
    assert time.monotonic() - began < 6


def test_answers_name_the_tasks_that_were_given():
    chosen = plan(Gossip(lr=0.1))
    given = list(tasks(chosen, clients()))
    with closing(Processes(workers=2).open(setting(chosen, clients()))) as session:
        told = list(session.run(given))
    assert all(isinstance(item, Answer) for item in told)
    assert all(item.task is task for item, task in zip(told, given, strict=True))


def test_arrays_are_in_memory_once_and_can_be_written_to():
    """Workers map them privately: code that writes into its input disturbs nobody, and torch takes them as they are."""
    x, y = rows(5000)
    packed = pack({"x": x, "transposed": x.T, "every other": x[::2], "y": y, "tensor": torch.arange(2000.0)})
    shelf = Shelf(packed.buffers)
    one, other = (unpack(Packed(packed.head, mapped(os.dup(shelf.fileno()), shelf.places))) for _ in range(2))
    shelf.close()
    np.testing.assert_array_equal(one["every other"], x[::2])
    np.testing.assert_array_equal(one["transposed"], x.T)
    assert one["x"].flags.writeable
    assert not one["x"].flags.owndata
    assert torch.from_numpy(one["x"]).data_ptr() == one["x"].ctypes.data
    assert one["x"].ctypes.data % 64 == 0
    one["x"][:] = 0
    one["tensor"].zero_()
    np.testing.assert_array_equal(other["x"], x)
    assert torch.equal(other["tensor"], torch.arange(2000.0))
    assert len(packed.head) < 2000  # no array went into it


def test_arrays_without_room_in_memory_go_to_disk_and_without_room_there_are_an_error(monkeypatch, tmp_path):
    assert shared.room_for(1000) == "/dev/shm"
    assert shared.room_for(2**60) == tempfile.gettempdir()
    monkeypatch.setattr(shared, "MEMORY", str(tmp_path / "there is no such folder"))
    assert shared.room_for(1000) == tempfile.gettempdir()
    monkeypatch.setattr(shared.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(EngineError, match=r"0\.2 GB of arrays .* do not fit in .*No space left.* set TMPDIR"):
        Shelf([memoryview(np.zeros(20_000_000))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_tensors_travel_by_value(dtype):
    for tensor in (torch.ones(3, 2).to(dtype), torch.ones(0).to(dtype), torch.tensor(1).to(dtype)):
        found = unpack(pack({"a": tensor, "b": tensor}))
        assert found["a"] is found["b"]
        assert found["a"].dtype is dtype
        assert torch.equal(found["a"], tensor)


# ------------------------------------------------------------ what cannot be sent, or started


def test_a_plan_that_cannot_be_sent_is_refused_by_name(tmp_path):
    with open(tmp_path / "log", "w") as log:

        def loss(output, y):
            log.write("loss\n")
            return nn.functional.cross_entropy(output, y, reduction="none")

        chosen = insitu.Plan(FedAvg(), learner=TorchLearner(nn.Linear(6, 3), loss=loss))
        reason = Processes(workers=1).refuses(chosen)
        assert "the plan.learner._loss, which uses log (a TextIOWrapper) cannot be sent" in reason
        assert "open files, locks and connections inside the function" in reason
        with pytest.raises(PlanError, match="which uses log"):
            train(chosen, clients(), Processes(workers=1))
        with pytest.raises(EngineError, match=r"the clients\._source\._load, which uses trouble, which uses log"):
            train(plan(), loaded(lambda place: log.write("x")), Processes(workers=1))
    assert Processes().refuses(plan()) is None


def at_home_only(act) -> Clients:
    """Clients that can be unpickled in this process alone."""
    home = os.getpid()

    class AtHomeOnly(Clients):
        def __setstate__(self, state):
            self.__dict__.update(state)
            if os.getpid() != home:
                act()

    return AtHomeOnly(clients()._source)


def test_workers_that_cannot_start_say_why():
    def unknown():
        raise ModuleNotFoundError("No module named 'elsewhere'")

    def die():
        sys.stderr.write("no GPU, no life\n")
        os._exit(9)

    with pytest.raises(EngineError, match=r"cannot load what it was sent \(ModuleNotFoundError: No module named"):
        Processes(workers=2).open(setting(plan(), at_home_only(unknown)))
    with pytest.raises(EngineError, match=r"3 in a row died .* exit code 9\n(?s:.*)no GPU, no life"):
        Processes(workers=1).open(setting(plan(), at_home_only(die)))


def test_bad_arguments_fail_when_the_engine_is_described():
    for wrong in ({"workers": 0}, {"lanes": 1.5}, {"compile": "yes"}):
        with pytest.raises(PlanError, match=next(iter(wrong))):
            Processes(**wrong)


# ------------------------------------------------------------ scripts

SCRIPT = """
    import os, sys, time
    import numpy as np
    import insitu
    from insitu.algorithms.fedavg import FedAvg
    from insitu.data.clients import Clients
    from insitu.engines.processes import Processes
    from insitu.learners.numpy import LogisticLearner

    print("hello from", os.getpid(), flush=True)
    x = np.random.default_rng(0).normal(size=(60, 6))
    y = (x[:, 0] > 0).astype(int)

    class Learner(LogisticLearner):
        def gradient(self, variables, batch, step):
            {trouble}
            return super().gradient(variables, batch, step)

    def load(place):
        return x[place::6], y[place::6]

    plan = insitu.Plan(FedAvg(lr=0.1), learner=Learner(6, 2), block=2)
    clients = Clients.lazy(range(6), load)
    def watch(event):
        {watch}

    chosen = {{"rounds": {rounds}, "store": None, "observers": (watch,)}}
    result = insitu.run(plan, clients, engine=Processes(workers=2), **chosen)
    print(result.status, result.rounds, flush=True)
    if {rounds} < 10:
        expected = insitu.run(plan, clients, engine="inline", **chosen)
        print("same bits", (result.params["weight"] == expected.params["weight"]).all())
"""


def script(trouble: str = "pass", rounds: int = 2, watch: str = "pass") -> str:
    return textwrap.dedent(SCRIPT).format(trouble=trouble, rounds=rounds, watch=watch)


def python(*arguments: str, cwd: Path, given: str | None = None) -> list[str]:
    """Runs Python with warnings as errors; returns the lines it printed."""
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=cwd, input=given, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_script_without_a_guard_and_a_module_beside_it(tmp_path):
    """Run from a folder with a file called like a library: it must not be imported in the library's place."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here" / "mine.py").write_text("def shift(a):\n    return a\n")
    (tmp_path / "elsewhere" / "numpy.py").write_text("raise ImportError('the wrong numpy')\n")
    program = tmp_path / "here" / "train.py"
    program.write_text("import mine\n" + script("mine.shift(1)"))
    lines = python(str(program), cwd=tmp_path / "elsewhere")
    assert [line.split()[0] for line in lines] == ["hello", "finished", "same"]
    assert lines[-1] == "same bits True"


@pytest.mark.parametrize("way", ["python -c", "stdin"])
def test_from_the_prompt(tmp_path, way):
    (tmp_path / "mine.py").write_text("def shift(a):\n    return a\n")
    program = "import mine\n" + script("mine.shift(1)")
    arguments, given = (["-c", program], None) if way == "python -c" else (["-"], program)
    assert python(*arguments, cwd=tmp_path, given=given)[-1] == "same bits True"


@pytest.mark.long
def test_a_network_defined_in_a_script_is_compiled_in_the_workers(tmp_path):
    """torch.compile looks a class's globals up in its module, which is the script."""
    program = """
        import numpy as np, torch, insitu
        from insitu.algorithms.fedavg import FedAvg
        from insitu.data.clients import Clients
        from insitu.engines.processes import Processes
        from insitu.engines.vectorized import Vectorized
        from insitu.learners.torch import TorchLearner

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = torch.nn.Linear(6, 8), torch.nn.Linear(8, 2)
            def forward(self, x):
                return self.last(torch.relu(self.first(x)))

        x = np.random.default_rng(0).normal(size=(60, 6))
        clients = Clients.from_arrays(x, (x[:, 0] > 0).astype(int), np.array_split(np.arange(60), 6))
        plan = insitu.Plan(FedAvg(), learner=TorchLearner(Network()))
        found = [
            insitu.run(plan, clients, rounds=2, engine=engine, store=None, observers=())
            for engine in (Vectorized(lanes=2, compile=True, device="cpu"), Processes(2, lanes=2, compile=True))
        ]
        print([(result.choices["compile"], "sequential" in result.choices) for result in found])
        print(all((found[0].params[name] == found[1].params[name]).all() for name in found[0].params))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines() == ["[(True, False), (True, False)]", "True"], done.stderr


def started(tmp_path: Path, trouble: str, watch: str = "pass") -> tuple[subprocess.Popen, set[int]]:
    """A script in a process group of its own, and its two workers, once they are at work."""
    path = tmp_path / "train.py"
    path.write_text(script(f"open({str(tmp_path / 'working')!r}, 'w').close(); {trouble}", 2000, watch))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        process_group=0,
    )  # fmt: skip
    assert until((tmp_path / "working").exists, 30)
    assert until(lambda: len(children(process.pid) - forked(tmp_path)) == 2)
    return process, children(process.pid) - forked(tmp_path)


def forked(tmp_path: Path) -> set[int]:
    """Children that are no workers."""
    return {int(path.suffix[1:]) for path in tmp_path.glob("forked.*")}


def test_a_worker_whose_parent_was_gone_before_it_was_up_ends(monkeypatch):
    """Its channel is held open, by another process for all it knows."""
    shelf = Shelf([])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", os.getppid)  # whoever it was, it is not the worker's parent any more
        hand = Hand(shelf)
    try:
        assert until(hand.ended, 30)
        assert hand.bury() == "ended with exit code 0", hand.last_words()
    finally:
        hand.bury()
        shelf.close()


def test_workers_vanish_with_a_parent_that_is_killed(tmp_path):
    """Though they are busy, and another process holds the parent's end of their channels open."""
    fork = f"open({str(tmp_path / 'forked.')!r} + str(os.fork() or time.sleep(60) or os._exit(0)), 'w').close()"
    process, workers = started(tmp_path, "time.sleep(600)", fork)
    try:
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert until(lambda: not any(map(alive, workers)), 8)
    finally:
        for pid in forked(tmp_path):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def test_ctrl_c_stops_after_the_round(tmp_path):
    process, workers = started(tmp_path, "time.sleep(0.01)")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopped" in out.splitlines()[-1]
    assert "Traceback" not in err
    assert not any(map(alive, workers))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    process, workers = started(tmp_path, "time.sleep(600)")
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in err
    assert not any(map(alive, workers))
