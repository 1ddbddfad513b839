"""Choosing lanes: the predicted round against a naive count, what is measured, what is remembered, who decides."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core import remembered
from insitu.core.protocols import Setting
from insitu.core.types import Failure, Task
from insitu.data.clients import Clients
from insitu.engines.vectorized import Vectorized, choice
from insitu.learners.torch import TorchLearner
from insitu.rounds.blocks import joined
from insitu.rounds.buffered import Buffered


def naive(cost, blocks, lanes):
    """A round's seconds, counted client by client."""
    tasks = [SimpleNamespace(kind="train", block=i, steps=n) for i, block in enumerate(blocks) for n in block]
    total = 0.0
    for together in joined(tasks, lanes):  # as the engine takes them
        clients = sorted((task.steps for task in together), reverse=True)
        waves = -(-len(clients) // lanes)
        width = -(-len(clients) // waves)
        while clients:
            wave, clients = clients[:width], clients[width:]
            for t in range(max(wave)):
                total += cost(sum(steps > t for steps in wave))
    return total


@example(steps=[1] * 7, block=3, lanes=8)  # the last block is shorter, and joins the others
@example(steps=[1] * 7, block=5, lanes=8)
@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(1, 9),
    st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
)
def test_a_round_is_predicted_from_the_steps_of_its_waves(steps, block, lanes):
    blocks = [steps[i : i + block] for i in range(0, len(steps), block)]
    costs = {n: 3.0 + 0.5 * n for n in (1, 2, 4, 8, 16, 32, 64)}
    assert choice.predicted(costs, blocks, lanes) == pytest.approx(naive(lambda n: 3.0 + 0.5 * n, blocks, lanes))


def test_many_lanes_where_a_step_costs_and_few_where_a_client_costs():
    blocks = [[5] * 16] * 2
    per_step = {n: 1.0 + 0.001 * n for n in (1, 2, 4, 8, 16)}
    per_client = {n: float(n) ** 1.5 for n in (1, 2, 4, 8, 16)}
    assert min(per_step, key=lambda n: choice.predicted(per_step, blocks, n)) == 16
    assert min(per_client, key=lambda n: choice.predicted(per_client, blocks, n)) == 1


def clients(n=12, d=20):
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 30, n)
    x = rng.standard_normal((sizes.sum(), d)).astype(np.float32)
    return Clients.from_arrays(x, (x[:, 0] > 0).astype(int), np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1]))


def plan():
    torch.manual_seed(0)
    return insitu.Plan(FedAvg(lr=0.1, batch_size=5), learner=TorchLearner(nn.Linear(20, 2)), evaluate_every=0)


def train(engine, rounds, **more):
    heard = []
    result = insitu.run(plan(), clients(), rounds=rounds, engine=engine, store=None, observers=[heard.append], **more)
    return result, [event.text for event in heard if type(event).__name__ == "Notice"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_long_run_measures_and_the_next_one_recalls(home, monkeypatch):
    result, heard = train(Vectorized(device="cpu"), 400)
    chosen = result.choices["lanes"]
    assert 1 <= chosen <= 12
    assert any(text.startswith(f"{chosen} lanes, fused steps") for text in heard)
    monkeypatch.setattr(choice, "measured", lambda *_: pytest.fail("measured again"))
    assert train(Vectorized(device="cpu"), 3)[0].choices["lanes"] == chosen


def test_a_short_run_takes_what_is_usual(home):
    result, _ = train(Vectorized(device="cpu"), 1)
    assert result.choices["lanes"] == 32
    assert not remembered.place().exists()


def test_a_given_number_is_taken_without_measuring(home, monkeypatch):
    monkeypatch.setattr(choice, "measured", lambda *_: pytest.fail("measured"))
    assert train(Vectorized(lanes=7, device="cpu"), 400)[0].choices["lanes"] == 7


@pytest.mark.parametrize(("given", "lanes"), [({}, 1), ({"lanes": 7}, 7)])
def test_in_real_time_nobody_measures_for_itself(home, monkeypatch, given, lanes):
    """Clients come one at a time, to several workers: each would find something else, and compute in another way."""
    monkeypatch.setattr(choice, "measured", lambda *_: pytest.fail("measured"))
    chosen, data = replace(plan(), buffered=Buffered(size=1, clock="real")), clients()
    session = Vectorized(**given, device="cpu").open(Setting(chosen, data, {}, 400, 0))
    start = chosen.learner.init(0)
    message = chosen.algorithm.ask(chosen.algorithm.init(start), 1)
    task = Task("run", 1, 0, "train", data.id_at(0), message, 0, 0, 0)
    (told,) = session.run([task])  # as a worker does that has a GPU
    session.close()
    assert not isinstance(told, Failure)
    assert (session.choices["lanes"], session.choices["compile"]) == (lanes, False)


def test_measured_lanes_do_not_change_the_answer(home):
    chosen, _ = train(Vectorized(device="cpu"), 300)
    given, _ = train(Vectorized(lanes=chosen.choices["lanes"], device="cpu"), 300)
    for name, value in chosen.variables.shared.items():
        assert torch.equal(value, given.variables.shared[name])


def test_without_a_compiler_steps_are_eager_and_one_notice_says_so(monkeypatch):
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    result, heard = train(Vectorized(lanes=3, compile=True, device="cpu"), 2)
    assert result.choices["compile"] is False
    assert len([text for text in heard if "compiler" in text]) == 1


@pytest.mark.parametrize(
    ("rounds", "compiling", "gain", "pays"),
    [(10, 40.0, 0.5, False), (100_000, 40.0, 0.5, True), (100_000, 40.0, 1.0, False), (100_000, 1e9, 0.5, False)],
)
def test_compiling_must_save_more_than_twice_its_cost(monkeypatch, rounds, compiling, gain, pays):
    monkeypatch.setattr(choice, "has_compiler", lambda device: True)

    class Some:
        class learner:
            mixes = False

        device = torch.device("cpu")

    class Run:
        pass

    Run.rounds = rounds
    known = {"costs": {"4": 0.01}, "compiled": 0.01 * gain, "compiling": compiling}
    assert choice._worth_compiling(Some, None, Run, [[5] * 4], 4, known) is pays
