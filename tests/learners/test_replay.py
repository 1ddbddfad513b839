"""Stretches that are recorded and replayed: the same bits as those that are run, whatever changes between them.

No GPU is needed: :class:`Again` has its protocol (copied in, replayed on the memory of the recording), not its kernels.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_chain import COUNTS, FLAT, LR, MODULES, batch_of, built, made, stacked
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.data import Clients
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner
from insitu.learners.torch.chain import replay
from insitu.learners.torch.losses import mse


@pytest.fixture
def made_of(monkeypatch):
    """Recordings on the CPU: how many were made."""
    found = []

    def record(work, device):
        found.append(work)
        return replay.Again(work, device)

    monkeypatch.setitem(replay.RECORDERS, "cpu", record)
    return found


def descended(chain, held, batch, counts=COUNTS, lr=LR):
    sums = {name: value.clone() for name, value in chain.descend(held, batch, counts, lr).items()}
    return {name: value.clone() for name, value in held.items()}, sums


def alike(one, other):
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", MODULES)
def test_replayed_stretches_have_the_same_bits(name, monkeypatch, made_of):
    shape, make = MODULES[name]
    module = made(make)
    recorded, plain = built(module, shape), built(module, shape)
    held, other = stacked(module), stacked(module)
    for seed in range(5):  # other examples each time, in other memory; the parameters go on from where they are
        batch = batch_of(shape, seed=seed)
        mine = descended(recorded, held, batch)
        with monkeypatch.context() as patch:
            patch.delitem(replay.RECORDERS, "cpu")
            alike(mine, descended(plain, other, batch))
    assert len(made_of) == 1


def test_whatever_a_recording_was_made_for_makes_another(made_of):
    module = made(MODULES["a perceptron"][1])
    chain, plain = built(module, FLAT), built(module, FLAT)
    held, elsewhere = stacked(module), stacked(module)
    batch = batch_of(FLAT)
    for parameters, counts, lr in (
        (held, COUNTS, LR),
        (held, COUNTS, LR / 2),
        (held, [3, 3, 3], LR),
        (elsewhere, COUNTS, LR),
    ):
        some = {column: value[: sum(counts)] for column, value in batch.items()}
        for _ in range(3):
            other = {name: value.clone() for name, value in parameters.items()}
            found = descended(chain, parameters, some, counts, lr)
            alike(found, (other, plain._steps(other, some, counts, lr, replay.Memory())))
    assert len(made_of) == 4


def test_no_more_recordings_are_kept_than_have_room(made_of, monkeypatch):
    monkeypatch.setattr(replay, "KEPT", 2)
    monkeypatch.setattr(replay, "SEEN", 5)
    module = made(MODULES["one layer"][1])
    chain, held, batch = built(module, FLAT), stacked(module), batch_of(FLAT)
    rates = [0.1, 0.2, 0.3]
    for lr in [*rates, *rates, *rates]:
        chain.descend(held, batch, COUNTS, lr)
    assert len(chain._replays._kept) == 2
    assert len(made_of) > 3  # one that was let go is made again
    for lr in np.linspace(1e-3, 2e-3, 20):
        chain.descend(held, batch, COUNTS, float(lr))
    assert len(chain._replays._seen) == 5


def test_what_cannot_be_recorded_is_run(monkeypatch):
    calls = []

    def record(work, device):
        calls.append(device)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(replay.RECORDERS, "cpu", record)
    module = made(MODULES["a perceptron"][1])
    chain, plain = built(module, FLAT, mse, {}), built(module, FLAT, mse, {})
    batch = batch_of(FLAT, lambda rows, generator: torch.randn(rows, 4, 3, generator=generator, dtype=torch.float64))
    held, other = stacked(module), stacked(module)
    for _ in range(4):
        found = descended(chain, held, batch)
        alike(found, (other, plain._steps(other, batch, COUNTS, LR, replay.Memory())))
    assert calls == [torch.device("cpu")]
    told = chain.said()
    assert told == [
        "stretches of steps are not recorded on cpu, and run as they are, which takes longer: operation not permitted"
        " when stream is capturing"
    ]
    assert chain.said() == []  # once


@pytest.mark.parametrize("short", [1, replay.TRIES])
def test_memory_that_was_short_is_not_always(monkeypatch, short):
    """One recording that does not fit turns nothing off: what others hold is let go, and it is tried again."""
    left = [torch.OutOfMemoryError("CUDA out of memory")] * short
    calls = []

    def record(work, device):
        calls.append(device)
        if len(calls) > 1 and left:
            raise left.pop()
        return replay.Again(work, device)

    monkeypatch.setitem(replay.RECORDERS, "cpu", record)
    module = made(MODULES["a perceptron"][1])
    chain, plain = built(module, FLAT), built(module, FLAT)
    held, other, batch = stacked(module), stacked(module), batch_of(FLAT)
    for lr in [0.1, 0.1, *[0.2] * 12]:
        found = descended(chain, held, batch, lr=lr)
        alike(found, (other, plain._steps(other, batch, COUNTS, lr, replay.Memory())))
    assert not left
    gave_up = short == replay.TRIES
    assert len(calls) == 1 + short + (not gave_up)
    assert len(chain._replays._kept) == (not gave_up)
    assert len(chain.said()) == gave_up


class Streams:
    """Stands in for torch.cuda: streams, each of a device, and the current one of each; the current device."""

    def __init__(self, monkeypatch, ends):
        self.current = {0: "main 0", 1: "main 1"}
        self.device, self.recorded = 0, []
        outer = self

        class graph:
            """As torch's, which ends a capture before it goes back to where it was."""

            def __init__(self, graph, stream=None):
                self.stream = stream or ("side", outer.device)

            def __enter__(self):
                self.before = outer.device, outer.current[self.stream[1]]
                outer.set_stream(self.stream)

            def __exit__(self, *args):
                if args[0] or not ends:
                    raise RuntimeError("operation failed due to a previous error during capture")
                outer.current[self.stream[1]] = self.before[1]
                outer.device = self.before[0]

        for name, value in {
            "CUDAGraph": object, "graph": graph, "set_stream": self.set_stream,
            "Stream": lambda device: ("side", device.index),
            "current_stream": lambda device=None: self._of(outer.device if device is None else device.index),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        replay._side_stream.cache_clear()

    def _of(self, index):
        return self.current[index], index

    def set_stream(self, stream):
        name, index = stream
        self.current[index], self.device = name, index


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("trouble", [None, "work", "end"])
def test_a_graph_is_recorded_on_the_lanes_device(monkeypatch, index, trouble):
    """Whichever is the current one; and where it fails, torch is as it was."""
    streams = Streams(monkeypatch, ends=trouble != "end")

    def work():
        streams.recorded.append((streams.device, streams.current[index]))
        if trouble == "work":
            raise RuntimeError("operation not permitted when stream is capturing")
        return {}

    try:
        if trouble is None:
            replay.Graph(work, torch.device("cuda", index))
        else:
            with pytest.raises(RuntimeError, match="capture"):
                replay.Graph(work, torch.device("cuda", index))
    finally:
        replay._side_stream.cache_clear()
    assert streams.recorded == [(index, "side")]
    assert (streams.device, streams.current) == (0, {0: "main 0", 1: "main 1"})


def test_users_are_told_that_nothing_is_recorded(monkeypatch):
    def record(work, device):
        raise RuntimeError("no graphs here")

    monkeypatch.setitem(replay.RECORDERS, "cpu", record)
    x, y = np.random.default_rng(1).normal(size=(24, 6)).astype(np.float32), np.arange(24) % 3
    clients = Clients.from_arrays(x, y, np.split(np.arange(24), 3))
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = insitu.Plan(FedAvg(lr=0.1, batch_size=4), TorchLearner(net))
    told = []
    engine = Vectorized(lanes=3, device="cpu")
    insitu.run(plan, clients, rounds=4, engine=engine, store=None, observers=[told.append])
    notices = [event.text for event in told if type(event).__name__ == "Notice"]
    assert [text for text in notices if text.endswith("no graphs here")] == [
        "stretches of steps are not recorded on cpu, and run as they are, which takes longer: no graphs here"
    ]


SIZES = [5, 31, 8, 17, 3, 22, 40, 9, 12]


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("lanes", [3, 4])
def test_a_run_that_is_replayed_has_the_bits_of_one_that_is_not(made_of, monkeypatch, tmp_path, lanes, from_file):
    """Clients of all lengths: with recordings, whoever has finished stays in its lane until the wave is over."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(sum(SIZES), 6)).astype(np.float32), rng.integers(0, 3, sum(SIZES))
    if from_file:
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    clients = Clients.from_arrays(x, y, np.split(np.arange(len(y)), np.cumsum(SIZES)[:-1]))
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def run():
        plan = insitu.Plan(FedAvg(lr=0.1, batch_size=4, epochs=2), TorchLearner(net))
        engine = Vectorized(lanes=lanes, device="cpu")
        return insitu.run(plan, clients, rounds=3, engine=engine, seed=2, store=None, observers=[])

    mine = run()
    assert made_of
    with monkeypatch.context() as patch:
        patch.delitem(replay.RECORDERS, "cpu")
        other = run()
    assert all(torch.equal(mine.variables.shared[name], value) for name, value in other.variables.shared.items())
    for one, two in zip(mine.history, other.history, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-6)
        assert one["clients"] == two["clients"] == len(SIZES)
