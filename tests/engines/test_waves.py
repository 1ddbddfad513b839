"""Waves: what is run side by side gives each client's own answer, and what cannot be is found out and says so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedprox import FedProx
from insitu.algorithms.scaffold import Scaffold
from insitu.core import tree
from insitu.core.batches import batches
from insitu.core.protocols import Setting
from insitu.core.types import Data, Failure, Folded, Task
from insitu.data.clients import Clients
from insitu.engines.inline import Inline
from insitu.engines.vectorized import Vectorized
from insitu.engines.vectorized.examples import Joined, Shelf
from insitu.engines.vectorized.lanes import Lanes
from insitu.engines.vectorized.wave import Wave
from insitu.learners.torch import TorchLearner
from insitu.rounds.memory import Memories

SIZES = (5, 9, 3, 7, 1, 12, 6, 4, 10, 2, 8, 5, 3, 11)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(sum(SIZES), 6))
Y = np.digitize(X[:, 0], [-0.5, 0.5])
ENDS = np.cumsum(SIZES)
PARTS = [np.arange(end - size, end) for size, end in zip(SIZES, ENDS, strict=True)]
CLIENTS = Clients.from_arrays(X, Y, PARTS)
FEDAVG = FedAvg(lr=0.1, epochs=2, batch_size=4)


class Net(nn.Module):
    """Two dense layers and a forward of one's own."""

    def __init__(self, forward=None):
        super().__init__()
        self.body, self.head, self._own = nn.Linear(6, 6), nn.Linear(6, 3), forward

    def forward(self, x):
        if self._own is None:
            return self.head(torch.relu(self.body(x)))
        return self._own(self, x)


def learner(forward=None, dtype=torch.float64, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return TorchLearner(Net(forward).to(dtype), **more)


def lanes(count=4, **more):
    return Vectorized(lanes=count, compile=False, device="cpu", **more)


def train(chosen, engine, clients=CLIENTS, rounds=2, block=7, **more):
    algorithm, own = chosen
    plan = insitu.Plan(algorithm, learner=own, block=block, evaluate_every=0)
    return insitu.run(plan, clients, rounds=rounds, engine=engine, seed=2, store=None, **{"observers": [], **more})


def agree(own, algorithm=FEDAVG, engine=None, clients=CLIENTS, **more):
    """The same run inline and in lanes; returns the second."""
    a = train((algorithm, own()), Inline(), clients, **more)
    b = train((algorithm, own()), engine or lanes(), clients, **more)
    x, y = tree.flatten(vars(a.variables)), tree.flatten(vars(b.variables))
    assert np.abs(x - y).max() <= 1e-10 * np.abs(x).max()
    assert [(r["clients"], r["failed"]) for r in a.history] == [(r["clients"], r["failed"]) for r in b.history]
    assert np.abs(x - tree.flatten(vars(own().init(0)))[: len(x)]).max() > 1e-3 or own().roles.personal
    return b


# ------------------------------------------------------------ what lanes assume is tried


def mixing(net, x):
    return net.head(torch.relu(net.body(x - x.mean(0))))


def counting(net, x):
    return net.head(torch.relu(net.body(x))) * x.shape[0]


def often(net, x):
    for _ in range(1 + int(x.detach().abs().max())):
        x = torch.tanh(net.body(x))
    return net.head(x)


def branching(net, x):
    x = net.body(x)
    return net.head(torch.tanh(net.body(x)) if x.mean() > 0 else x)


def listing(net, x):
    return net.head(net.body(x) * max(x.detach().flatten().tolist()))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("forward", [mixing, counting, often, branching, listing])
def test_a_model_that_lanes_would_get_wrong_runs_one_client_after_another(forward, count):
    heard = []
    result = agree(lambda: learner(forward), engine=lanes(count), observers=[heard.append])
    assert ("mixes the examples" in result.choices["sequential"]) == (forward in (mixing, counting))
    assert any("one after another" in getattr(event, "text", "") for event in heard)
    if forward in (often, branching, listing):
        assert "depends on values" in result.choices["step_because"]


def test_a_loss_that_mixes_the_examples_is_found_out_too():
    def contrast(output, y):
        values = (output[:, 0] - y).square()
        return values - 0.5 * values.mean()

    result = agree(lambda: learner(loss=contrast))
    assert "its loss mixes" in result.choices["sequential"]


def test_what_mixes_but_only_across_the_batch_of_all_lanes():
    """A batch's first example is in everyone's answer: padding does not show, but merged lanes would share one."""

    def first_of_batch(net, x):
        return net.head(torch.relu(net.body(x + 0.1 * x[:1])))

    result = agree(lambda: learner(first_of_batch))
    assert result.choices["step"] == "mapped"
    assert "not those of the clients alone" in result.choices["step_because"]
    assert "sequential" not in result.choices


@pytest.mark.parametrize(
    ("algorithm", "step"),
    [
        (FEDAVG, "fused"),
        (FedAvg(lr=0.1, epochs=2, batch_size=4, clip=0.5), "stacked"),
        (FedAvg(lr=0.1, steps=5, batch_size=3, optimizer="momentum"), "stacked"),
        (FedAvg(lr=0.01, epochs=2, batch_size=4, optimizer="adam"), "stacked"),
        (FedProx(mu=0.5, lr=0.1, epochs=2, batch_size=4), "stacked"),
        (Scaffold(lr=0.1, epochs=2, batch_size=4), "stacked"),
        (FedAvg(lr=0.1, epochs=2, batch_size=None), "fused"),
        (FedAvg(lr=0.1, epochs=3, batch_size=1), "fused"),
    ],
    ids=repr,
)
def test_methods_take_the_fastest_step_that_is_theirs(algorithm, step):
    result = agree(learner, algorithm)
    assert result.choices["step"] == step
    assert not {"step_because", "sequential"} & set(result.choices)


@pytest.mark.parametrize("roles", [{"personal": ("head",)}, {"frozen": ("body",)}, {"frozen": ("head.bias",)}])
def test_roles(roles):
    result = agree(lambda: learner(**roles))
    assert result.choices["step"] == ("mapped" if roles == {"frozen": ("head.bias",)} else "fused")


def test_a_single_number_as_a_parameter_is_summed():
    def own():
        module = Net(lambda net, x: net.head(net.body(x)) * net.scale).double()
        module.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        return TorchLearner(module)

    torch.manual_seed(0)
    state = Net().double().state_dict()

    def same():
        found = own()
        found._module.load_state_dict(state, strict=False)
        return found

    assert agree(same).choices["step_because"] == "Net has parameters of its own (scale)"


def test_a_layer_used_twice_is_fused_rightly_where_the_choice_was_given():
    """As in a resumed run, or in another worker: nothing is tried there before the first step."""

    def twice(net, x):
        return net.head(torch.tanh(net.body(torch.tanh(net.body(x)))))

    chosen = FEDAVG, learner(twice)
    expected, found = (
        tree.flatten(updates(chosen, given)[0].accumulator["value"]) for given in ({}, {"step": "fused"})
    )
    np.testing.assert_array_equal(expected, found)


# ------------------------------------------------------------ bad clients


def explode(place):
    x = X.copy()
    x[PARTS[place]] *= 1e200
    return Clients.from_arrays(x, Y, PARTS)


@pytest.mark.parametrize("place", [5, 3, 0])
def test_a_client_whose_steps_explode_fails_alone_and_by_name(place):
    """Client 5 is the longest, so that the model is tried on its batch first."""
    failed = []
    result = agree(learner, clients=explode(place), observers=[failed.append], rounds=1)
    assert result.history[0]["failed"] == 1
    names = [event.client for event in failed if type(event).__name__ == "ClientFailed"]
    assert names == [str(place)] * 2  # inline's and ours
    assert result.choices["step"] == "fused"
    assert "sequential" not in result.choices


def test_an_index_beyond_the_table_is_that_clients_failure():
    words = RNG.integers(0, 5, (len(X), 4))
    words[PARTS[5][3], 2] = 9
    clients = Clients.from_arrays(words, Y, PARTS)

    def own():
        torch.manual_seed(0)
        return TorchLearner(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(16, 3)).double())

    result = agree(own, clients=clients, rounds=2)
    assert [row["failed"] for row in result.history] == [1, 1]
    assert "sequential" not in result.choices


def test_a_sum_that_fails_costs_its_clients_by_name(monkeypatch):
    from insitu.engines.vectorized.together import Together

    def broken(self, finished):
        raise RuntimeError("no sum today")

    monkeypatch.setattr(Together, "add_all", broken)
    items = updates((FEDAVG, learner()))
    assert all(isinstance(item, Failure) and "no sum today" in item.error for item in items)
    assert sorted(item.client for item in items) == sorted(str(i) for i in range(14))


def test_a_block_that_cannot_be_copied_costs_its_clients_by_name(monkeypatch):
    """Two blocks stand in the lanes, and there is no room for a copy of the second."""
    from insitu.engines.vectorized.lanes import Finished

    whole = Finished.of_block

    def short(self, block, shelf):
        if block == 1:
            raise MemoryError("no room")
        return whole(self, block, shelf)

    monkeypatch.setattr(Finished, "of_block", short)
    items = updates((FEDAVG, learner()))
    lost = [item for item in items if isinstance(item, Failure)]
    assert sorted(item.client for item in lost) == sorted(str(i) for i in range(7, 14))
    assert all("no room" in item.error for item in lost)
    assert [item.block for item in items if not isinstance(item, Failure)] == [0]


# ------------------------------------------------------------ lanes that do not fit


@pytest.mark.parametrize("fits", [3, 1])
def test_lanes_that_do_not_fit_are_halved_with_a_notice(monkeypatch, fits):
    train_ = Lanes.train

    def short(self, wave):
        for at, finished in enumerate(train_(self, wave)):
            if len(wave.jobs) > fits and at == 0:
                raise torch.OutOfMemoryError("out of memory")
            yield finished

    monkeypatch.setattr(Lanes, "train", short)
    heard = []
    result = agree(learner, engine=lanes(7), observers=[heard.append])
    assert 1 <= result.choices["lanes"] <= fits
    notices = [event.text for event in heard if "do not fit" in getattr(event, "text", "")]
    assert notices[0].startswith("7 lanes do not fit")
    assert f"lanes={result.choices['lanes']}" in notices[-1]
    assert "sequential" not in result.choices


def test_memory_that_ends_midway_loses_no_client_and_counts_none_twice(monkeypatch):
    """Some clients have left the wave already when it stops: only the others start again."""
    train_, raised = Lanes.train, []

    def short(self, wave):
        for at, finished in enumerate(train_(self, wave)):
            if at == 2 and not raised:
                raised.append(True)
                raise torch.OutOfMemoryError("out of memory")
            yield finished

    monkeypatch.setattr(Lanes, "train", short)
    result = agree(learner, FedProx(mu=0.5, lr=0.1, epochs=2, batch_size=4), lanes(14), block=14)
    assert raised
    assert result.choices["lanes"] < 14


# ------------------------------------------------------------ blocks


def updates(chosen, given=None, count=14, block=7, apart=False):
    """What the session says of all clients in one round; ``apart``: with a call for each block."""
    algorithm, own = chosen
    plan = insitu.Plan(algorithm, learner=own, block=block)
    for place in range(len(CLIENTS)):
        own.check(CLIENTS.at(place))
    message = algorithm.ask(algorithm.init(own.init(7)), 1)
    tasks = [
        Task("run", 1, 0, "train", CLIENTS.id_at(place), message, 7, place, place, place // block)
        for place in range(len(CLIENTS))
    ]
    setting = Setting(plan, CLIENTS, Memories(), 1, 7, notify=pytest.fail, choices=given or {})
    session = lanes(count).open(setting)
    calls = [tasks[at : at + block] for at in range(0, len(tasks), block)] if apart else [tasks]
    found = [item for call in calls for item in session.run(call)]
    session.close()
    return found


@pytest.mark.parametrize("count", [7, 14, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("algorithm", [FEDAVG, FedProx(mu=0.5, lr=0.1, epochs=2, batch_size=4)], ids=repr)
def test_blocks_have_the_same_bits_joined_or_apart(algorithm, dtype, count):
    joined, apart = (updates((algorithm, learner(dtype=dtype)), count=count, apart=way) for way in (False, True))
    assert all(isinstance(item, Folded) for item in joined)
    assert [item.block for item in joined] == [item.block for item in apart] == [0, 1]
    for a, b in zip(joined, apart, strict=True):
        np.testing.assert_array_equal(tree.flatten(a.accumulator["value"]), tree.flatten(b.accumulator["value"]))
        assert a.accumulator["weight"] == b.accumulator["weight"]
        assert [(r.client, r.metrics) for r in a.reports] == [(r.client, r.metrics) for r in b.reports]


# ------------------------------------------------------------ the plan of a wave


def job(size, work, client):
    batch_size, epochs, steps = work
    plan = batches(size, batch_size, epochs, steps, seed=1, round=1, client=client)
    leaf = torch.zeros(1, dtype=torch.float64)
    data = Data(np.zeros((size, 1)))
    carry = {"shared": {"w": leaf}, "personal": {}}
    task, client = SimpleNamespace(client=client), SimpleNamespace(data=data)
    return SimpleNamespace(task=task, client=client, batches=plan, carry=carry, dropout=int(task.client) + 100)


@pytest.mark.parametrize(
    ("lanes", "steps"),
    [(1, [20]), (2, [12, 8]), (3, [8, 8, 4]), (6, [8, 8, 4]), (12, [8, 8, 4]), (24, [4] * 5), (200, [1] * 20)],
)
def test_how_many_steps_are_gathered_at_a_time(monkeypatch, lanes, steps):
    """So many bytes; eight steps where those are more, up to four times the bytes; one step in any case."""
    batch = 5 * (8 + 8)  # bytes of five examples, a number and a label each
    monkeypatch.setattr("insitu.engines.vectorized.wave.STRETCH", 24 * batch)
    jobs = [job(100, (5, 1, None), str(i)) for i in range(lanes)]
    columns = {str(i): {"x": torch.zeros(100, dtype=torch.float64), "y": torch.zeros(100).long()} for i in range(lanes)}
    wave = Wave(jobs, Joined(columns), 5, torch.device("cpu"), Shelf())
    assert [len(stretch.counts) for stretch in wave.stretches()] == steps
    assert wave.steps_in_a_stretch(lanes) == steps[0]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    batch_size=st.integers(1, 5),
    epochs=st.integers(1, 3),
    steps=st.none() | st.integers(1, 7),
    pad=st.booleans(),
    stretch=st.sampled_from([1, 100, 4 * 2**20]),
    least=st.integers(0, 3),
)
def test_turns_are_the_batches_of_a_loop(sizes, batch_size, epochs, steps, pad, stretch, least):
    """Each lane's batches in the order of its own plan, at every step, whatever stretches they are gathered in."""
    work = (batch_size, None if steps else epochs, steps)
    jobs = [job(size, work, str(i)) for i, size in enumerate(sizes)]
    columns = [
        {"x": {"a": torch.arange(size)[:, None] + 100 * i, "b": torch.full((size,), i)}, "y": torch.arange(size) - 9}
        for i, size in enumerate(sizes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("insitu.engines.vectorized.wave.STRETCH", stretch)
        patch.setattr("insitu.engines.vectorized.wave.STEPS", least)
        examples = Joined({str(i): part for i, part in enumerate(columns)})
        wave = Wave(jobs, examples, batch_size, torch.device("cpu"), Shelf())
        owners = [j.dropout - 100 for j in wave.jobs]
        lengths = [len(jobs[i].batches) for i in owners]
        assert lengths == sorted(lengths, reverse=True)
        assert wave.counts().tolist() == [sum(n > t for n in lengths) for t in range(max(lengths))]
        seen = 0
        for t, turn in enumerate(wave.turns(8 if pad else None)):
            at_work = [k for k, n in enumerate(lengths) if n > t]
            assert turn.lanes == (8 if pad else len(at_work))
            for k in at_work:
                index = jobs[owners[k]].batches[t]
                filled = np.append(index, np.repeat(index[-1], batch_size - len(index)))
                assert turn.batch["x"]["a"][k, :, 0].tolist() == (filled + 100 * owners[k]).tolist()
                assert set(turn.batch["x"]["b"][k].tolist()) == {owners[k]}
                assert turn.batch["y"][k].tolist() == (filled - 9).tolist()
                assert turn.batch["weight"][k].tolist() == [float(i < len(index)) for i in range(batch_size)]
                assert turn.batch["share"][k].sum().item() == pytest.approx(1)
                assert turn.batch["seed"][k] == jobs[owners[k]].dropout
                assert turn.sizes[k] == len(index)
            assert not turn.batch["weight"][len(at_work) :].any()
            seen += 1
        assert seen == max(lengths)
