"""DiLoCo and its streaming variant against loops over torch.optim; what fragments are, and what a round sends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shards import BATCH, Workers, close, flat, net, run

import insitu
from insitu.algorithms.diloco import DiLoCo
from insitu.algorithms.local_sgd import LocalSGD
from insitu.algorithms.streaming_diloco import StreamingDiLoCo, cut, pick, put
from insitu.core import tree, wire
from insitu.core.errors import PlanError
from insitu.engines.processes import Processes
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner
from insitu.rounds.buffered import Buffered

ENGINES = {
    "inline": "inline",
    "lanes": Vectorized(lanes=3, compile=False, device="cpu"),
    "workers": Processes(workers=2),
}


class Outer:
    """Nesterov over torch.optim on some of a flat vector's elements."""

    def __init__(self, places):
        self.places = places
        self.held = torch.from_numpy(flat(net())[places].copy()).requires_grad_()
        self.optimizer = torch.optim.SGD([self.held], lr=0.7, momentum=0.9, nesterov=True)

    def step(self, mean):
        self.held.grad = self.held.detach() - torch.from_numpy(mean[self.places])
        self.optimizer.step()
        return self.held.detach().numpy().copy()


@pytest.mark.parametrize("engine", ENGINES)
def test_diloco_is_algorithm_1(engine):
    workers, outer = Workers(lambda p: torch.optim.AdamW(p, lr=0.02)), Outer(slice(None))
    for _ in range(5):
        workers.steps(4)
        workers.set(outer.step(workers.mean()))
    close(run(DiLoCo(lr=0.02, steps=4, batch_size=BATCH), 5, ENGINES[engine]), outer.held.detach().numpy())


def streamed(places, rounds, steps):
    """Streaming DiLoCo by hand: ``places`` [P] are the elements of each fragment; the rest stays with its worker."""
    workers = Workers(lambda p: torch.optim.AdamW(p, lr=0.02))
    outers = [Outer(place) for place in places]
    for round in range(rounds):
        workers.steps(steps)
        turn = round % len(places)
        fresh = outers[turn].step(workers.mean())
        for module in workers.modules:
            vector = flat(module)
            vector[places[turn]] = fresh
            torch.nn.utils.vector_to_parameters(torch.from_numpy(vector), module.parameters())
    whole = flat(net())
    for place, outer in zip(places, outers, strict=True):
        whole[place] = outer.held.detach().numpy()
    return whole


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rounds", [5, 8])
def test_streaming_is_a_loop_by_hand(engine, rounds):
    """Tensors of 30, 6, 18 and 3 elements: in two fragments 30 and 27."""
    expected = streamed([np.arange(30), np.arange(30, 57)], rounds, 3)
    found = run(StreamingDiLoCo(lr=0.02, steps=3, batch_size=BATCH, fragments=2), rounds, ENGINES[engine])
    close(found, expected)


def test_one_fragment_is_diloco_to_the_bit_and_in_float32():
    for dtype in (torch.float64, torch.float32):
        options = {"lr": 0.02, "steps": 3, "batch_size": BATCH}
        one = run(StreamingDiLoCo(fragments=1, **options), dtype=dtype)
        other = run(DiLoCo(**options), dtype=dtype)
        np.testing.assert_array_equal(*(tree.flatten(r.variables.shared) for r in (one, other)))


def test_plain_descent_within_and_without_is_local_sgd_to_the_bit():
    one = run(DiLoCo(lr=0.1, steps=3, batch_size=BATCH, optimizer="sgd", server="sgd", server_lr=1.0))
    other = run(LocalSGD(lr=0.1, steps=3, batch_size=BATCH))
    assert wire.encode(one.state["shared"]) == wire.encode(other.state["shared"])


def test_a_round_sends_a_fragment():
    whole = run(DiLoCo(steps=2, batch_size=BATCH), 6).history
    parts = run(StreamingDiLoCo(steps=2, batch_size=BATCH, fragments=2), 6).history
    up, down = ([row[name] for row in parts] for name in ("bytes_up", "bytes_down"))
    assert up == [30 * 8 * 4, 27 * 8 * 4] * 3
    assert down[0] == whole[0]["bytes_down"]  # the start
    assert down[1:] == [count * 8 * 4 + 8 * 4 for count in (30, 27, 30, 27, 30)]  # and lr
    assert sum(up) * 2 == sum(row["bytes_up"] for row in whole)
    assert max(up[1:]) < 0.55 * max(row["bytes_up"] for row in whole)


@pytest.mark.parametrize("engine", ["inline", "lanes"])
def test_streaming_resumes_in_the_middle_of_its_turns(tmp_path, engine):
    algorithm = StreamingDiLoCo(lr=0.02, steps=2, batch_size=BATCH, fragments=3)
    whole = run(algorithm, 7, ENGINES[engine])
    half = run(algorithm, 4, ENGINES[engine], store=tmp_path / "a.db")
    rest = run(algorithm, 7, ENGINES[engine], store=tmp_path / "a.db", resume=half.id)
    assert wire.encode(rest.state) == wire.encode(whole.state)


# ------------------------------------------------------------ who misses a round


class Flaky(TorchLearner):
    """A learner that cannot learn from one client in some rounds."""

    def __init__(self, worker, rounds):
        super().__init__(net())
        self.worker, self.rounds, self.asked = worker, rounds, 0

    def check(self, client):
        if client.id == self.worker:
            self.asked += 1
            if self.asked in self.rounds:
                raise ConnectionError("gone")
        super().check(client)


def flaky(worker, rounds, count=6):
    from shards import PARTS, SEED, X, Y

    plan = insitu.Plan(StreamingDiLoCo(lr=0.02, steps=2, batch_size=BATCH), learner=Flaky(worker, rounds))
    clients = insitu.data.Clients.from_arrays(X, Y, PARTS)
    heard = []
    result = insitu.run(plan, clients, rounds=count, engine="inline", seed=SEED, store=None, observers=[heard.append])
    return result, [event.error for event in heard if type(event).__name__ == "ClientFailed"]


def test_a_worker_that_misses_a_round_goes_on():
    result, errors = flaky("2", {3})
    assert [row["failed"] for row in result.history] == [0, 0, 1, 0, 0, 0]
    assert len(errors) == 1
    assert tree.not_finite(result.state) is None


def test_a_worker_that_never_had_the_model_is_told_so():
    result, errors = flaky("2", {1})
    assert [row["failed"] for row in result.history] == [1] * 6
    assert "comes to round 2 without the model" in errors[1]
    assert "use DiLoCo" in errors[1]


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"cohort": insitu.Uniform(2)}, r"cohort=Uniform\("),
        ({"buffered": Buffered(2)}, r"buffered=Buffered\("),
        ({"policy": insitu.Policy(over_select=0.5)}, "over_select=0.5"),
    ],
)
def test_everyone_takes_part(option, match):
    with pytest.raises(PlanError, match=match):
        insitu.Plan(StreamingDiLoCo(), learner=TorchLearner(net()), **option)


def test_more_fragments_than_tensors_are_refused_before_the_first_round():
    with pytest.raises(PlanError, match="fragments=5 are more than the model's 4 tensors"):
        run(StreamingDiLoCo(fragments=5))


# ------------------------------------------------------------ fragments


nested = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=6)


def made(shape):
    return {f"l{i}": {f"w{j}": np.arange(float(n)) for j, n in enumerate(layer)} for i, layer in enumerate(shape)}


def best(sizes, parts):
    """The smallest possible largest run, by trying every cut."""
    if parts == 1:
        return sum(sizes)
    return min(max(sum(sizes[:i]), best(sizes[i:], parts - 1)) for i in range(1, len(sizes) - parts + 2))


@given(nested, st.data())
def test_fragments_are_runs_of_neighbours_the_largest_as_small_as_can_be(shape, data):
    model = made(shape)
    paths = [path for path, _ in tree.leaves(model)]
    count = data.draw(st.integers(1, min(4, len(paths))))
    fragments = cut(model, count)
    assert [path for fragment in fragments for path in fragment] == paths
    assert len(fragments) == count
    assert all(fragments)
    sizes = dict((path, leaf.nbytes) for path, leaf in tree.leaves(model))
    assert max(sum(sizes[p] for p in fragment) for fragment in fragments) == best(list(sizes.values()), count)


@given(nested, st.data())
def test_what_is_picked_and_put_back_changes_nothing_else(shape, data):
    model = made(shape)
    paths = [path for path, _ in tree.leaves(model)]
    some = data.draw(st.sets(st.sampled_from(paths)))
    part = pick(model, some)
    assert [path for path, _ in tree.leaves(part)] == [path for path in paths if path in some]
    new = dict(tree.leaves(put(model, tree.scale(part, -1.0))))
    for path, leaf in tree.leaves(model):
        np.testing.assert_array_equal(new[path], -leaf if path in some else leaf)
