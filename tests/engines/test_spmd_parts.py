"""The engine spmd in parts: shares, frames, who is missing, and what ranks compare."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core.errors import EngineError, PlanError
from insitu.data.clients import Clients
from insitu.engines.spmd import Spmd, share, watch
from insitu.engines.spmd.ranks import Ranks
from insitu.learners.numpy import LogisticLearner
from insitu.learners.torch import TorchLearner
from insitu.names import find

# ------------------------------------------------------------ shares


@given(
    loads=st.lists(st.integers(1, 50), min_size=1, max_size=9),
    seconds=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=4),
)
def test_shares_are_consecutive_and_the_latest_ends_as_early_as_it_can(loads, seconds):
    ends = share.ends(loads, seconds)
    assert len(ends) == len(seconds)
    assert ends[-1] == len(loads)
    assert ends == sorted(ends)

    def latest(cuts):
        return max(s * sum(loads[a:b]) for s, a, b in zip(seconds, [0, *cuts[:-1]], cuts, strict=True))

    def all_cuts(n, k):
        if k == 1:
            yield [n]
            return
        for first in range(n + 1):
            for rest in all_cuts(n - first, k - 1):
                yield [first, *(first + r for r in rest)]

    best = min(latest(cuts) for cuts in all_cuts(len(loads), len(seconds)))
    assert latest(ends) <= best * 1.002


# ------------------------------------------------------------ who is missing


@pytest.fixture
def watched():
    """Makes all ends of a watch in this process, and closes them."""
    made: list[watch.Watch] = []

    def make(world: int, timeout: float) -> list[watch.Watch]:
        made.extend(_watched(world, timeout))
        return made

    yield make
    for one in made[::-1]:
        one.close()


def _watched(world: int, timeout: float) -> list[watch.Watch]:
    found: dict[int, watch.Watch] = {}
    port: list[str] = []
    published = threading.Event()

    def publish(text: str) -> None:
        port.append(text)
        published.set()

    def look_up() -> str:
        published.wait(10)
        return port[0]

    def join(rank: int) -> None:
        lines = watch.lines(rank, world, "127.0.0.1", publish, look_up, "token", 10)
        found[rank] = watch.Watch(rank, world, lines, timeout)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(world)]


def met(watches, ranks, doing="testing") -> dict[int, str]:
    """What these ranks hear when they want to meet; empty for those that met."""
    said: dict[int, str] = {}

    def meet(rank: int) -> None:
        try:
            watches[rank].meet(doing)
            said[rank] = ""
        except EngineError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return said


def test_all_meet_as_often_as_they_like(watched):
    watches = watched(3, 20)
    for _ in range(5):
        assert met(watches, (2, 0, 1)) == {0: "", 1: "", 2: ""}


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_whoever_is_gone_is_named_on_every_rank(watched, gone):
    watches = watched(3, 20)
    assert set(met(watches, (0, 1, 2)).values()) == {""}
    watches[gone]._over = True  # its thread closes its lines without a word: what a system does for the killed
    watches[gone]._thread.join()
    others = [rank for rank in range(3) if rank != gone]
    for text in met(watches, others).values():
        assert f"rank {gone} of 3 is missing while testing" in text
        assert "its process is gone" in text


def test_letters_are_taken_in_the_order_in_which_they_come(watched):
    watches = watched(3, 20)
    watches[2].tell(0)
    assert watches[0].letter("testing") == 2
    watches[1].tell(0)
    assert watches[0].letter("testing") == 1
    watches[0].call(2, True)
    watches[0].call(1, False)
    assert watches[2].called("testing") is True
    assert watches[1].called("testing") is False
    watches[0].tell(2)
    assert watches[2].letter("testing") == 0


@pytest.mark.parametrize("gone", [1, 2])
def test_whoever_waits_for_a_letter_hears_who_is_gone(watched, gone):
    """Of whatever rank, though another's letter has come: the run ends."""
    watches = watched(3, 20)
    watches[3 - gone].tell(0)
    watches[gone].leave("ValueError: no labels")
    deadline = time.monotonic() + 10
    while not all(gone in watches[rank].gone for rank in (0, 3 - gone)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for rank in (0, 3 - gone):
        with pytest.raises(EngineError, match=f"rank {gone} of 3 is missing while testing: ValueError: no labels"):
            watches[rank].letter("testing")
    with pytest.raises(EngineError, match="rank"):
        watches[3 - gone].called("testing")


def test_whoever_has_left_waits_for_no_letter(watched):
    watches = watched(2, 20)
    watches[0].leave("")
    with pytest.raises(EngineError, match="this rank has left the others, so there is no testing"):
        watches[0].letter("testing")


def test_why_somebody_left_is_passed_on(watched):
    watches = watched(3, 20)
    watches[2].leave("DataError: client 'x' has no labels")
    for text in met(watches, (0, 1)).values():
        assert "rank 2 of 3 is missing while testing: DataError: client 'x' has no labels" in text


def test_whoever_is_silent_is_dead_after_the_timeout(watched):
    watches = watched(2, 0.6)
    watches[1]._beat = 1e9  # its line stays open, and it says nothing: as under SIGSTOP
    text = met(watches, (0,))[0]
    assert "rank 1 of 2 is missing while testing: it has given no sign of life for 0.6 s (timeout=0.6)" in text


def test_so_it_is_for_whoever_waits_for_its_letter(watched):
    watches = watched(2, 0.6)
    watches[1]._beat = 1e9
    with pytest.raises(EngineError, match=r"rank 1 of 2 is missing while testing: .* no sign of life for 0.6 s"):
        watches[0].letter("testing")


def test_whoever_does_not_know_the_token_stays_outside():
    said: list[str] = []

    def listen() -> None:
        try:
            watch.lines(0, 2, "127.0.0.1", port.append, str, "token", 1.5)
        except EngineError as error:
            said.append(str(error))

    port: list[str] = []
    thread = threading.Thread(target=listen)
    thread.start()
    while not port:
        time.sleep(0.01)
    for line in watch.lines(1, 2, "127.0.0.1", str, lambda: port[0], "another", 1.5).values():
        line.close()
    thread.join(10)
    assert said == ["rank 1 of 2 did not come within 1.5 s (timeout=1.5): see what became of it, or start with as many"
                    " processes as WORLD_SIZE says"]  # fmt: skip


# ------------------------------------------------------------ frames


FRAMES = """
import sys, numpy as np, torch, torch.distributed as dist
from insitu.core import wire
from insitu.engines.spmd import frames
rank = int(sys.argv[1])
dist.init_process_group("gloo", rank=rank, world_size=2)
rng = np.random.default_rng(0)
tree = {
    "large": torch.arange(3000, dtype=torch.float64).view(3, 1000).t(), "half": torch.ones(900, dtype=torch.bfloat16),
    "array": rng.normal(size=(40, 50)).T, "labels": np.arange(2000), "scalar": torch.tensor(3), "text": "é",
    "list": [1, 2.5, None, True, ("a", np.zeros(500))], "deep": {"empty": {}, "none": torch.zeros(0)},
    "\\x00beside": ("\\x00beside",),
}
if rank == 0:
    sending = frames.Sending(tree, 1)
    sending.wait()
    back, _ = frames.receive(1)
else:
    back, size = frames.receive(0)
    frames.Sending(back, 0).wait()
assert wire.encode(back) == wire.encode(wire.decode(wire.encode(tree))), "changed on the way"
assert back["array"].flags.writeable
dist.destroy_process_group()
"""


def ranks(program: str, world: int, *own: str, timeout: float = 110) -> list[subprocess.CompletedProcess[str]]:
    """This program on so many ranks; ``own`` is each one's argument beside its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), *own[rank : rank + 1]],
            env={**base, "RANK": str(rank)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]  # fmt: skip
    done = []
    try:
        for process in started:
            out, err = process.communicate(timeout=timeout)
            done.append(subprocess.CompletedProcess([], process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return done


def test_a_tree_survives_the_way():
    for one in ranks(FRAMES, 2):
        assert one.returncode == 0, one.stderr


# ------------------------------------------------------------ what ranks compare


DIFFERENT = """
import sys, numpy as np, torch
import insitu
from insitu import record
from insitu.algorithms.fedavg import FedAvg
from insitu.core.errors import EngineError
from insitu.data.clients import Clients
from insitu.engines.spmd import Spmd
from insitu.learners.torch import TorchLearner
rank = int(sys.argv[1])
engine = Spmd(timeout=60)

def said(lr=0.1, width=4, shift=0.0, seed=1, rows=12, ids=None, weights=0):
    torch.manual_seed(weights)
    x = np.random.default_rng(0).normal(size=(12, width)) + shift
    clients = Clients.from_arrays(x[:rows], np.arange(rows) % 2, np.array_split(np.arange(rows), 3), ids=ids)
    plan = insitu.Plan(FedAvg(lr=lr), learner=TorchLearner(torch.nn.Linear(width, 2)))
    try:
        insitu.run(plan, clients, rounds=1, engine=engine, seed=seed, store=None, observers=[])
    except EngineError as error:
        print(error)
    else:
        print("ran")

for change in ({}, {"lr": 0.2}, {"width": 5}, {"shift": 0.5}, {"seed": 2}, {"rows": 11}, {"ids": ["a", "b", "c"]},
               {"weights": 9}):
    said(**(change if rank == 1 else {}))
if rank == 1:
    versions = record.versions()
    import insitu.run
    sys.modules["insitu.run"].versions = lambda: {**versions, "numpy": "1.0"}
said()
"""


def test_ranks_with_different_plans_data_or_versions_say_which_rank_and_which_field():
    told = ranks(DIFFERENT, 2)
    assert [one.returncode for one in told] == [0, 0], told[0].stderr + told[1].stderr
    lines = told[0].stdout.splitlines()
    assert lines == told[1].stdout.splitlines()  # the same on both
    ran, lr, width, shift, seed, rows, ids, weights, version = lines
    assert ran == "ran"
    for line in lines[1:]:
        assert line.startswith("rank 1 was given something else than rank 0: ")
    assert "plan.algorithm.lr is 0.2 on rank 1 and 0.1 on rank 0" in lr
    assert "in_features" in width or "parameter shared/weight is float32[2, 5] on rank 1" in width
    assert "the data of client '0'" in shift
    assert "seed is 2 on rank 1 and 1 on rank 0" in seed
    assert "sizes" in rows
    assert "the clients' ids and sizes" in ids
    assert "the first parameters' values" in weights
    assert "version of numpy is 1.0 on rank 1" in version


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "mpi"}, "backend='mpi'"),
        ({"timeout": 0}, "timeout=0"),
        ({"lanes": 0}, "lanes=0"),
        ({"hook": "topk"}, "hook='topk'"),
    ],
)
def test_bad_options_are_refused_by_name_and_value(options, message):
    with pytest.raises(PlanError, match=message):
        Spmd(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("options", [{"backend": "nccl"}, {"hook": "bf16"}])
def test_what_needs_a_gpu_is_refused_without_one(options):
    plan = insitu.Plan(FedAvg(), learner=LogisticLearner(4, 2))
    assert "needs" in Spmd(**options).refuses(plan)
    assert "GPU" in Spmd(**options).refuses(plan)


def test_a_hook_without_its_use_is_refused():
    """Batch norm is averaged client by client, where the hook would do nothing."""
    x, y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 2
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    plan = insitu.Plan(find("algorithms", "data_parallel")(steps=2), learner=TorchLearner(model))
    with pytest.raises(EngineError, match="hook='fp16'"):
        insitu.run(plan, Clients.from_arrays(x, y), rounds=1, engine=Spmd(hook="fp16"), store=None, observers=[])


def test_environment_of_others_without_a_place_to_meet_is_said(monkeypatch):
    from insitu.engines.spmd import ranks as room

    monkeypatch.setattr(room, "_joined", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(EngineError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"):
        Spmd().ranks()


def test_one_rank_alone_needs_no_others():
    ranks = Ranks(0, 1, "none", 1.0, None)
    assert ranks.gather({"a": 1}, "testing") == [{"a": 1}]
    assert ranks.first(3, "testing") == 3
    assert ranks.relay([], lambda before: [*before, 1], "testing") == [1]
    assert ranks.settle(True) == (True, [0])


MORE_RANKS = """
import sys, numpy as np, torch, insitu
from insitu.algorithms.data_parallel import DataParallel
from insitu.core.errors import EngineError
from insitu.data.clients import Clients
from insitu.engines.spmd import Spmd
from insitu.learners.torch import TorchLearner
x = np.zeros((4, 2))
torch.manual_seed(0)
plan = insitu.Plan(DataParallel(batch_size=1, steps=1), learner=TorchLearner(torch.nn.Linear(2, 2)))
try:
    clients = Clients.from_arrays(x, np.arange(4) % 2)
    insitu.run(plan, clients, rounds=1, engine=Spmd(timeout=60), store=None, observers=[])
except EngineError as error:
    print(error)
"""


def test_more_ranks_than_examples_in_a_step_is_refused():
    for one in ranks(MORE_RANKS, 2):
        assert "2 ranks share 1 example a step" in one.stdout, one.stderr
