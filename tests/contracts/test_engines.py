"""Same plan, same seed, same answer: every engine found on disk against ``inline``."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from contract_cases import (
    BATCH,
    MODELS,
    descents,
    engines,
    far,
    flat,
    in_process,
    learner,
    module,
    ragged,
    train,
    worker_engines,
)

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedprox import FedProx
from insitu.algorithms.fedsgd import FedSGD
from insitu.algorithms.scaffold import Scaffold
from insitu.core import wire
from insitu.core.optim import Adam, Momentum
from insitu.core.protocols import Setting
from insitu.core.types import Answer, Task
from insitu.engines.inline import Inline
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner
from insitu.rounds.memory import Memories

CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4}
ALGORITHMS = {
    "fedavg": FedAvg(lr=0.1, epochs=2, batch_size=BATCH),
    "fedprox": FedProx(mu=0.5, lr=0.1, epochs=1, batch_size=BATCH, optimizer=Momentum(0.5), clip=1.0),
    "scaffold": Scaffold(lr=0.1, steps=3, batch_size=BATCH, server=Adam(), server_lr=0.02),
}
dtypes = pytest.mark.parametrize("dtype", CLOSE, ids=["float64", "float32"])


def plan(algorithm, model, dtype, **more):
    chosen = ALGORITHMS[algorithm] if isinstance(algorithm, str) else algorithm
    return insitu.Plan(chosen, learner=learner(model, dtype), **{"block": 3, **more})


@functools.cache
def meant(algorithm: str, model: str, dtype: torch.dtype) -> np.ndarray:
    """What inline says."""
    return flat(train(plan(algorithm, model, dtype), ragged(model), Inline()))


def agrees(engine: str, algorithm: str, model: str, dtype: torch.dtype) -> None:
    result = train(plan(algorithm, model, dtype), ragged(model), engines()[engine])
    assert "sequential" not in result.choices
    assert [row["clients"] for row in result.history] == [8] * 5
    assert far(meant(algorithm, model, dtype), flat(result)) <= CLOSE[dtype]


def test_training_moves_the_model():
    """The other tests would pass if nothing happened at all."""
    start = np.concatenate([p.detach().numpy().reshape(-1) for p in module("perceptron").parameters()])
    for algorithm in ALGORITHMS:
        assert far(start, meant(algorithm, "perceptron", torch.float64)) > 1e-2
    assert far(meant("fedavg", "logistic", torch.float64), meant("fedprox", "logistic", torch.float64)) > 1e-3


def combinations():
    """All; by default, of the costly LSTM and of ``debug`` (inline's code, watched) those that could differ."""
    found = []
    for engine in in_process():
        for model in MODELS:
            for algorithm in ALGORITHMS:
                for dtype in CLOSE:
                    usual = model == "perceptron" if engine in ("debug", "spmd", "vectorized-1") else model != "lstm"
                    usual = usual or (model, algorithm, engine) == ("lstm", "fedprox", "vectorized-3")
                    marks = () if usual or engine == "inline" else (pytest.mark.long,)
                    found.append(pytest.param(engine, algorithm, model, dtype, marks=marks))
    return found


def test_inline_is_there_to_compare_with():
    assert "inline" in in_process()


@pytest.mark.parametrize(
    ("engine", "algorithm", "model", "dtype"),
    [c for c in combinations() if c.values[0] != "inline"],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_it_says_what_inline_says(engine, algorithm, model, dtype):
    agrees(engine, algorithm, model, dtype)


@pytest.mark.parametrize("cls", descents(), ids=lambda cls: cls.part_name())
@pytest.mark.parametrize("engine", ["debug", "vectorized-3"])
def test_every_method_agrees(engine, cls):
    chosen = insitu.Plan(cls.example(), learner=learner("perceptron"), block=3)
    expected = flat(train(chosen, ragged("perceptron"), Inline(), 3))
    assert far(expected, flat(train(chosen, ragged("perceptron"), engines()[engine], 3))) <= 1e-10


@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_batch_norm_agrees(lanes):
    """Its buffers travel, it never sees padding, and a leftover batch of one joins the one before it."""
    sizes = (3, 9, 5, 12, 2, 17, 8)  # with batches of 4: leftovers of one in 9, 5 and 17
    chosen = insitu.Plan(ALGORITHMS["fedavg"], learner=learner("batchnorm"), block=3)
    clients = ragged("batchnorm", sizes)
    expected = train(chosen, clients, Inline())
    result = train(chosen, clients, Vectorized(lanes=lanes, compile=False, device="cpu"))
    assert far(flat(expected), flat(result)) <= 1e-10
    assert int(expected.variables.buffers["1.num_batches_tracked"]) == int(
        result.variables.buffers["1.num_batches_tracked"]
    )


@pytest.mark.parametrize("engine", [name for name in in_process() if name != "debug"])
def test_memories_agree_as_well(engine):
    """SCAFFOLD's controls, bit for bit with themselves and to rounding with inline's."""
    chosen = plan("scaffold", "perceptron", torch.float64, cohort=insitu.Uniform(5))
    expected = train(chosen, ragged("perceptron"), Inline(), 4)
    result = train(chosen, ragged("perceptron"), engines()[engine], 4)
    assert set(result.memories) == set(expected.memories)
    for client, memory in expected.memories.items():
        for name, control in memory["algorithm"]["method"].items():
            np.testing.assert_allclose(
                result.memories[client]["algorithm"]["method"][name], control, rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("engine", in_process())
@pytest.mark.parametrize("model", ["perceptron", "cnn"])
def test_the_same_run_twice_has_the_same_bits(engine, model):
    a, b = (flat(train(plan("scaffold", model, torch.float32), ragged(model), engines()[engine])) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_another_seed_is_another_run():
    a, b = (
        flat(train(plan("fedavg", "perceptron", torch.float64), ragged("perceptron"), Inline(), seed=s)) for s in (1, 2)
    )
    assert far(a, b) > 1e-4


@pytest.mark.parametrize("policy", [insitu.Policy(over_select=0.5), insitu.Policy(quorum=0.5, over_select=1.0)])
@pytest.mark.parametrize("engine", [name for name in in_process() if name != "inline"])
def test_over_selection_means_the_same_on_every_engine(engine, policy):
    chosen = plan("fedavg", "logistic", torch.float64, policy=policy, cohort=insitu.Uniform(4))
    expected = train(chosen, ragged("logistic"), Inline(), 3)
    result = train(chosen, ragged("logistic"), engines()[engine], 3)
    assert [row["clients"] for row in result.history] == [row["clients"] for row in expected.history]
    assert far(flat(expected), flat(result)) <= 1e-10


# ------------------------------------------------------------ worker processes


@pytest.mark.parametrize("dtype", CLOSE, ids=["float64", "float32"])
@pytest.mark.parametrize("engine", worker_engines())
def test_workers_say_what_inline_says(engine, dtype):
    """The case with most in it: embedding, two LSTM layers with dropout between, momentum, clipping, ragged clients."""
    agrees(engine, "fedprox", "lstm", dtype)


@pytest.mark.parametrize("engine", worker_engines()[1:2])
def test_workers_keep_memories(engine):
    agrees(engine, "scaffold", "perceptron", torch.float64)


def test_any_number_of_workers_gives_the_same_bits():
    if not worker_engines():
        pytest.skip("there is no engine with workers")
    found = [
        flat(train(plan("scaffold", "perceptron", torch.float32), ragged("perceptron"), engines()[name], 3))
        for name in worker_engines()
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.long
@dtypes
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("engine", worker_engines())
def test_workers_say_what_inline_says_in_every_combination(engine, algorithm, model, dtype):
    agrees(engine, algorithm, model, dtype)


# ------------------------------------------------------------ compiled


@pytest.mark.long
@dtypes
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_compiled_lanes_agree(algorithm, dtype):
    chosen = plan(algorithm, "perceptron", dtype)
    result = train(chosen, ragged("perceptron"), Vectorized(lanes=3, compile=True, device="cpu"))
    assert result.choices["compile"] is True
    assert "sequential" not in result.choices
    assert far(meant(algorithm, "perceptron", dtype), flat(result)) <= CLOSE[dtype]


@pytest.mark.long
def test_compiled_lanes_agree_on_logistic_regression():
    result = train(
        plan("fedavg", "logistic", torch.float64), ragged("logistic"), Vectorized(lanes=3, compile=True, device="cpu")
    )
    assert result.choices["compile"] is True
    assert "sequential" not in result.choices
    assert far(meant("fedavg", "logistic", torch.float64), flat(result)) <= 1e-10


# ------------------------------------------------------------ a client's bits do not depend on its lane or neighbours


def told(chosen, clients, engine, places) -> dict[str, bytes]:
    """Each client's update, in bytes, where these clients are one block in this order."""
    setting = Setting(chosen, clients, Memories(), 1, 7, notify=pytest.fail)
    for place in range(len(clients)):
        chosen.learner.check(clients.at(place))
    message = chosen.algorithm.ask(chosen.algorithm.init(chosen.learner.init(7)), 1).default
    session = engine.open(setting)
    tasks = [
        Task("run", 1, 0, "train", clients.id_at(place), message, 7, i, place, 0) for i, place in enumerate(places)
    ]
    found = {}
    for item in session.run(tasks):
        assert isinstance(item, Answer), item
        found[item.task.client] = wire.encode({"value": item.update.value, "metrics": item.update.metrics})
    session.close()
    return found


def lonely_and_in_company(model, algorithm, compiled=False, lanes=3, sizes=None):
    """Gossip's Reduce needs each update, so the lanes hand them out one by one."""
    from insitu.algorithms.gossip import Gossip

    fields = {name: getattr(algorithm, name) for name in ("lr", "epochs", "steps", "batch_size", "optimizer", "clip")}
    chosen = insitu.Plan(Gossip(**fields), learner=learner(model, torch.float32))
    clients = ragged(model) if sizes is None else ragged(model, sizes)
    engine = Vectorized(lanes=lanes, compile=compiled, device="cpu")
    everyone = list(range(len(clients)))
    together = told(chosen, clients, engine, everyone)
    assert set(together) == {clients.id_at(place) for place in everyone}
    backwards = told(chosen, clients, engine, everyone[::-1])
    assert backwards == together
    for place in (0, 2, 4, 6):
        alone = told(chosen, clients, engine, [place])
        assert alone[clients.id_at(place)] == together[clients.id_at(place)]
    some = told(chosen, clients, engine, [5, 2, 3])
    assert all(some[client] == together[client] for client in some)


@pytest.mark.parametrize("model", MODELS)
def test_a_clients_bits_do_not_depend_on_its_lane_or_neighbours(model):
    lonely_and_in_company(model, ALGORITHMS["fedavg"])


def test_nor_with_a_local_optimiser_and_clipping():
    lonely_and_in_company("perceptron", FedAvg(lr=0.05, epochs=2, batch_size=BATCH, optimizer="adam", clip=0.5))


def test_nor_with_batch_norm():
    lonely_and_in_company("batchnorm", ALGORITHMS["fedavg"], sizes=(3, 9, 5, 12, 2, 17, 8))


def test_nor_where_a_batch_is_all_of_a_clients_data():
    """Padding then goes up to the largest neighbour: the claim must hold, or be taken back for this case."""
    sizes = (3, 1, 90, 50, 129, 2, 77, 8)
    lonely_and_in_company("perceptron", FedAvg(lr=0.1, epochs=2, batch_size=None), sizes=sizes)


def test_batch_norm_is_not_compiled_and_a_notice_says_so():
    """Lanes of one size advance together there, so a kernel for each number of them would show in a client's bits."""
    heard = []
    chosen = insitu.Plan(ALGORITHMS["fedavg"], learner=learner("batchnorm", torch.float32))
    clients = ragged("batchnorm", (3, 9, 5))
    engine = Vectorized(lanes=3, compile=True, device="cpu")
    result = insitu.run(chosen, clients, rounds=1, engine=engine, store=None, observers=[heard.append])
    assert result.choices["compile"] is False
    assert any("not compiled" in getattr(event, "text", "") for event in heard)


@pytest.mark.long
def test_nor_compiled():
    lonely_and_in_company("perceptron", ALGORITHMS["fedavg"], compiled=True)


# ------------------------------------------------------------ failures mean the same everywhere


class WithABadClient:
    """Clients of which one cannot be learnt from; ``bad`` is what it has for data."""

    def __init__(self, clients, place, bad) -> None:
        self.clients, self.place, self.bad = clients, place, bad

    def __len__(self):
        return len(self.clients)

    def at(self, place):
        client = self.clients.at(place)
        if place != self.place:
            return client
        return insitu.Client(client.id, self.bad(client.data))

    def id_at(self, place):
        return self.clients.id_at(place)

    def size_at(self, place):
        return None

    def has_holdout(self):
        return False

    def schema(self):
        return self.clients.schema()


def label_out_of_range(data):
    return insitu.Data(data.x, data.y + 10)


def too_few_features(data):
    return insitu.Data(data.x[:, :-1], data.y)


def without_labels(data):
    return insitu.Data(data.x)


def of_a_strange_type(data):
    return insitu.Data(data.x.astype(object), data.y)


def exploding(data):
    return insitu.Data(data.x * np.inf, data.y)


def unreadable(data):
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "bad", [label_out_of_range, too_few_features, without_labels, of_a_strange_type, exploding, unreadable]
)
@pytest.mark.parametrize("engine", ["inline", "vectorized-1", "vectorized-3"])
def test_one_bad_client_is_one_failure(engine, bad):
    """The others' answers are those of a round without it."""
    clients = WithABadClient(ragged("perceptron"), 4, bad)
    result = train(plan("fedavg", "perceptron", torch.float64), clients, engines()[engine], 2)
    assert [(row["clients"], row["failed"]) for row in result.history] == [(7, 1)] * 2
    expected = train(plan("fedavg", "perceptron", torch.float64), clients, Inline(), 2)
    assert far(flat(expected), flat(result)) <= 1e-10


def test_columns_of_different_types_are_not_mixed_up_in_lanes():
    """Where one client's numbers happen to be whole, its neighbours' must not be cut off."""

    def whole(data):
        return insitu.Data(data.x, np.round(data.y).astype(np.int64))

    base = ragged("logistic")
    values = [insitu.Client(c.id, insitu.Data(c.data.x, c.data.x[:, 0] * 3 + 0.5)) for c in base]

    class Regression(WithABadClient):
        def at(self, place):
            return insitu.Client(values[place].id, whole(values[place].data)) if place == 6 else values[place]

    chosen = insitu.Plan(
        ALGORITHMS["fedavg"], learner=TorchLearner(torch.nn.Linear(6, 1).double(), loss="mse"), block=8
    )
    clients = Regression(base, 6, whole)
    expected = train(chosen, clients, Inline(), 2)
    result = train(chosen, clients, engines()["vectorized-3"], 2)
    assert [row["failed"] for row in expected.history] == [0, 0]
    assert far(flat(expected), flat(result)) <= 1e-10


def test_debug_stops_at_the_first_failure_and_names_client_round_and_inputs():
    clients = WithABadClient(ragged("perceptron"), 4, too_few_features)
    with pytest.raises(insitu.core.errors.ClientError) as stopped:
        train(plan("fedavg", "perceptron", torch.float64), clients, "debug", 2)
    message = str(stopped.value)
    assert "client '4'" in message
    assert "round 1" in message
    assert "[4, 5]" in message  # the shape of the batch that went in


def test_an_engine_refuses_what_it_cannot_run_with_a_cure():
    from insitu.algorithms.kmeans import KMeans
    from insitu.learners.numpy import LogisticLearner

    refused = Vectorized().refuses(insitu.Plan(KMeans(k=2)))
    assert "KMeans" in refused
    assert "engine='inline'" in refused
    refused = Vectorized().refuses(insitu.Plan(FedSGD(), learner=LogisticLearner(6, 3)))
    assert "LogisticLearner" in refused
    assert "TorchLearner" in refused
