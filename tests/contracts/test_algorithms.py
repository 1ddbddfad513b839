"""What every algorithm promises, tried with each file found in ``insitu.algorithms``."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from contract_cases import algorithm_classes, arrays, descents, far, flat, learner, ragged, table, train

import insitu
from insitu.algorithms.diloco import DiLoCo
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedsgd import FedSGD
from insitu.algorithms.local_sgd import LocalSGD
from insitu.core import tree, wire
from insitu.core.errors import PlanError
from insitu.core.protocols import Algorithm
from insitu.core.types import ByClient, Client, Context, Data, Task
from insitu.data.clients import Clients
from insitu.engines.inline import Inline
from insitu.reduce.concat import Concat
from insitu.rounds.client import work
from insitu.rounds.fold import fold_in

every = pytest.mark.parametrize("cls", algorithm_classes(), ids=lambda cls: cls.part_name())


# ------------------------------------------------------------ what it says of itself


@every
def test_it_has_an_example_a_formula_and_a_reference(cls):
    assert isinstance(cls.example(), cls)
    text = inspect.getdoc(cls)
    assert ".. math::" in text
    assert "Reference:" in text
    assert cls.example().config()["name"] == cls.part_name()


@every
def test_it_is_a_frozen_dataclass(cls):
    example = cls.example()
    name = dataclasses.fields(example)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(example, name, getattr(example, name))
    assert example == cls.example()


@every
def test_its_config_is_plain_data_from_which_it_can_be_made_again(cls):
    example = cls.example()
    fields = {k: v for k, v in example.config().items() if k != "name"}
    assert cls(**fields) == example


BAD = {
    "lr": (0, -1, float("nan"), float("inf"), "0.1", True, None),
    "epochs": (0, -1, 1.5, True),
    "steps": (0, -1, 2.5),
    "batch_size": (0, -3, 2.5, "10"),
    "clip": (0, -1.0, float("inf")),
    "server_lr": (0, -1),
    "weights": ("example", None),
    "optimizer": ("sdg", None),
    "server": ("adamm",),
    "mu": (-0.1, float("nan")),
    "k": (0, -1, 2.5),
    "topology": ("star",),
    "gamma": (0, -0.5, 1.5, float("nan")),
    "batches": ("on", None),
    "keep_optimizer": (None, "yes"),
    "switch": (-1, 1.5, True),
    "trees": (0, -1, 2.5),
    "depth": (0, -1, 2.5, 13),
    "loss": ("log", None),
    "bins": (0, -1, 1, 2.5),
    "reg_lambda": (-1, float("nan")),
    "min_child_weight": (-1, float("inf")),
    "fragments": (0, -1, 1.5),
}


def bad_arguments():
    return [
        pytest.param(cls, {f.name: value}, id=f"{cls.part_name()}-{f.name}={value}")
        for cls in algorithm_classes()
        for f in dataclasses.fields(cls)
        for value in BAD.get(f.name, ())
    ]


@pytest.mark.parametrize(("cls", "argument"), bad_arguments())
def test_a_bad_argument_is_refused_by_name_and_value(cls, argument):
    with pytest.raises(PlanError) as refused:
        cls(**argument)
    ((name, value),) = argument.items()
    assert name in str(refused.value)
    assert str(value) in str(refused.value)


@pytest.mark.parametrize(
    "cls",
    [cls for cls in algorithm_classes() if {"epochs", "steps"} <= {f.name for f in dataclasses.fields(cls)}],
    ids=lambda cls: cls.part_name(),
)
def test_epochs_and_steps_together_are_refused(cls):
    with pytest.raises(PlanError, match="epochs=2 and steps=3"):
        cls(epochs=2, steps=3)


def test_every_argument_that_says_how_much_or_how_fast_is_tried():
    """A new method's numeric field needs a line in BAD, so that its check is tested."""
    known = {*BAD, "seed", "start", "first"}
    fields = {(cls.part_name(), f.name) for cls in algorithm_classes() for f in dataclasses.fields(cls)}
    assert not [f"{cls}.{name}: add it to BAD" for cls, name in sorted(fields) if name not in known]


# ------------------------------------------------------------ the limit case


def run_float64(algorithm, model="perceptron", rounds=3, **more):
    return flat(train(insitu.Plan(algorithm, learner=learner(model)), ragged(model), Inline(), rounds, **more))


def same_fields(cls, **changes):
    """The example's fields that FedAvg has as well."""
    fields = {f.name: getattr(cls.example(), f.name) for f in dataclasses.fields(FedAvg)}
    return FedAvg(**{**fields, **changes})


def limit_mu_zero(cls):
    a = run_float64(dataclasses.replace(cls.example(), mu=0))
    b = run_float64(same_fields(cls))
    c = run_float64(dataclasses.replace(cls.example(), mu=0.5))
    np.testing.assert_array_equal(a, b)
    assert far(a, c) > 1e-3  # with mu it is another method


def limit_first_round(cls):
    a = run_float64(cls.example(), rounds=1)
    b = run_float64(same_fields(cls, weights="uniform"), rounds=1)
    assert far(a, b) < 1e-12
    three = run_float64(cls.example(), rounds=3)
    assert far(three, run_float64(same_fields(cls, weights="uniform"), rounds=3)) > 1e-4


def limit_complete_graph(cls):
    a = run_float64(dataclasses.replace(cls.example(), topology="complete"), rounds=3)
    b = run_float64(same_fields(cls, weights="uniform"), rounds=3)
    assert far(a, b) < 1e-12


def limit_gossip(cls):
    from insitu.algorithms.gossip import Gossip

    for model in ("perceptron", "batchnorm"):
        a = run_float64(dataclasses.replace(cls.example(), gamma=1.0), model)
        b = run_float64(Gossip.example(), model)
        assert far(a, b) < 1e-12
        assert far(a, run_float64(cls.example(), model)) > 1e-4


def limit_one_step(cls):
    """Rounding apart: (w - lr·g) - w is not -lr·g."""
    one = dataclasses.replace(cls.example(), steps=1, batches="anew")
    a = run_float64(one)
    b = run_float64(FedSGD(lr=one.lr, batch_size=one.batch_size, weights="uniform"))
    assert far(a, b) < 1e-12
    assert far(a, run_float64(dataclasses.replace(one, steps=2, switch=0))) > 1e-3


def limit_plain_optimisers(cls):
    example = cls.example()
    plain = dataclasses.replace(example, optimizer="sgd", server="sgd", server_lr=1.0)
    a = run_float64(plain)
    b = run_float64(LocalSGD(lr=example.lr, steps=example.steps, batch_size=example.batch_size))
    np.testing.assert_array_equal(a, b)
    assert far(a, run_float64(example)) > 1e-3


def limit_one_fragment(cls):
    example = cls.example()
    fields = {f.name: getattr(example, f.name) for f in dataclasses.fields(DiLoCo)}
    b = run_float64(DiLoCo(**fields))
    np.testing.assert_array_equal(run_float64(dataclasses.replace(example, fragments=1)), b)
    assert far(b, run_float64(example)) > 1e-3


def limit_complete_graph_of_gradients(cls):
    example = dataclasses.replace(cls.example(), topology="complete")
    a = run_float64(example)
    b = run_float64(FedSGD(lr=example.lr, batch_size=example.batch_size, weights="uniform"))
    assert far(a, b) < 1e-12


def limit_one_step_of_all(cls):
    """A round of one step on all examples is FedSGD's; and more steps in a round are more rounds of one."""
    from insitu.algorithms.fedsgd import FedSGD

    a = run_float64(cls(lr=0.3, steps=1, batch_size=None), model="logistic", rounds=6)
    assert far(a, run_float64(FedSGD(lr=0.3), model="logistic", rounds=6)) < 1e-12
    assert far(a, run_float64(cls(lr=0.3, steps=3, batch_size=None), model="logistic", rounds=2)) < 1e-12


LIMITS = {
    "steps=1 and batch_size=None is fedsgd": limit_one_step_of_all,
    "mu=0 is fedavg": limit_mu_zero,
    "first round is fedavg": limit_first_round,
    "topology='complete' is fedavg with uniform weights": limit_complete_graph,
    "gamma=1 is gossip": limit_gossip,
    "topology='complete' is fedsgd with uniform weights": limit_complete_graph_of_gradients,
    "steps=1 is fedsgd with uniform weights": limit_one_step,
    "sgd within and without is local_sgd": limit_plain_optimisers,
    "fragments=1 is diloco": limit_one_fragment,
}


@pytest.mark.parametrize(
    "cls", [c for c in algorithm_classes() if c.limit is not None], ids=lambda cls: cls.part_name()
)
def test_the_limit_case_holds(cls):
    assert cls.limit in LIMITS, f"teach this test the limit case {cls.limit!r}"
    LIMITS[cls.limit](cls)


def test_methods_with_a_known_limit_state_it():
    stated = {cls.part_name() for cls in algorithm_classes() if cls.limit is not None}
    assert stated >= {"fedprox", "scaffold", "gossip"}


# ------------------------------------------------------------ pure, and at home on the wire


class Rounds:
    """Rounds by hand, so that each verb can be called twice and its inputs looked at afterwards."""

    def __init__(self, cls: type[Algorithm]) -> None:
        self.algorithm = cls.example()
        if cls.learner_needed == "none":
            pool = table()
            parts = [np.arange(0, 9), np.arange(9, 13), np.arange(13, 24)]
            self.clients = [Client(str(i), pool.take(part), pool.take(part[:2])) for i, part in enumerate(parts)]
            self.plan = insitu.Plan(self.algorithm)
            self.start = None
        else:
            x, y = arrays("perceptron", 24)
            parts = [np.arange(0, 9), np.arange(9, 13), np.arange(13, 24)]
            self.clients = [
                Client(str(i), Data(x[part], y[part]), Data(x[part[:2]], y[part[:2]])) for i, part in enumerate(parts)
            ]
            self.plan = insitu.Plan(self.algorithm, learner=learner("perceptron"))
            self.plan.learner.check(self.clients[0])
            self.start = self.plan.learner.init(0)
        self.state = self.algorithm.init(self.start)
        self.memories: dict = {}

    def task(self, i: int, message, kind="train", round=1) -> Task:
        client = self.clients[i].id
        told = message.for_client(client) if isinstance(message, ByClient) else message
        return Task("run", round, round - 1, kind, client, told, 5, i, i, 0)

    def answers(self, round: int):
        message = self.algorithm.ask(self.state, round)
        return [
            work(self.plan, self.task(i, message, round=round), client, self.memories.get(client.id))
            for i, client in enumerate(self.clients)
        ]

    def total(self, answers, round: int):
        accumulator = self.plan.reduce.zero()
        for answer in answers:
            accumulator = fold_in(self.plan, accumulator, answer)
        return self.plan.reduce.finish(accumulator, self.context(round))

    def context(self, round: int) -> Context:
        return Context(round, len(self.clients), [client.id for client in self.clients], 5)

    def advance(self, round: int) -> None:
        answers = self.answers(round)
        self.state = self.algorithm.tell(self.state, self.total(answers, round), round)
        for answer in answers:
            if answer.memory is not None:
                self.memories[answer.task.client] = answer.memory


def message_bytes(message) -> bytes:
    if isinstance(message, ByClient):
        return wire.encode({"default": message.default, "messages": dict(message.messages)})
    return wire.encode(message)


def update_bytes(update) -> bytes:
    return wire.encode({"value": update.value, "weight": update.weight, "metrics": update.metrics})


@pytest.fixture(params=algorithm_classes(), ids=lambda cls: cls.part_name())
def rounds(request):
    """After two rounds, so that memories, controls and server states are there and not zero."""
    made = Rounds(request.param)
    made.advance(1)
    made.advance(2)
    return made


def test_ask_is_pure(rounds):
    before = wire.encode(rounds.state)
    first = message_bytes(rounds.algorithm.ask(rounds.state, 3))
    assert message_bytes(rounds.algorithm.ask(rounds.state, 3)) == first
    assert wire.encode(rounds.state) == before


def test_local_is_pure(rounds):
    message = rounds.algorithm.ask(rounds.state, 3)
    asked = message_bytes(message)
    for i, client in enumerate(rounds.clients):
        data = [np.array(leaf) for leaf in (client.data.x, client.data.y)]
        memory = rounds.memories.get(client.id)
        memory_before = wire.encode(memory)
        own = (memory or {}).get("algorithm")
        told = [
            rounds.algorithm.local(rounds.task(i, message, round=3), client, rounds.plan.learner, own) for _ in range(2)
        ]
        assert update_bytes(told[0][0]) == update_bytes(told[1][0])
        assert wire.encode(told[0][1]) == wire.encode(told[1][1])
        assert wire.encode(memory) == memory_before
        np.testing.assert_array_equal(client.data.x, data[0])
        np.testing.assert_array_equal(client.data.y, data[1])
    assert message_bytes(message) == asked


def test_tell_is_pure(rounds):
    total = rounds.total(rounds.answers(3), 3)
    state, value = wire.encode(rounds.state), wire.encode(total.value)
    first = rounds.algorithm.tell(rounds.state, total, 3)
    assert wire.encode(rounds.algorithm.tell(rounds.state, total, 3)) == wire.encode(first)
    assert wire.encode(rounds.state) == state
    assert wire.encode(total.value) == value
    # Two rounds of an example did something (the first of nearest neighbours is all that it does).
    assert state != wire.encode(rounds.algorithm.init(rounds.start))


def test_measures_and_params_are_pure(rounds):
    before = wire.encode(rounds.state)
    params, measures = rounds.algorithm.params(rounds.state), rounds.algorithm.measures(rounds.state)
    assert wire.encode(rounds.algorithm.params(rounds.state).shared) == wire.encode(params.shared)
    assert rounds.algorithm.measures(rounds.state) == measures
    assert all(isinstance(value, float) and np.isfinite(value) for value in measures.values())
    assert wire.encode(rounds.state) == before


def test_state_message_update_and_memory_survive_the_wire(rounds):
    """Bit for bit; and a round computed from what came back is the same round."""
    answers = rounds.answers(3)
    told = rounds.algorithm.tell(rounds.state, rounds.total(answers, 3), 3)
    for thing in (rounds.state, *(a.update.value for a in answers), *(a.memory for a in answers)):
        assert wire.encode(wire.decode(wire.encode(thing))) == wire.encode(thing)
    rounds.state = wire.decode(wire.encode(rounds.state))
    rounds.memories = {client: wire.decode(wire.encode(memory)) for client, memory in rounds.memories.items()}
    again = rounds.answers(3)
    assert [update_bytes(a.update) for a in again] == [update_bytes(a.update) for a in answers]
    assert [wire.encode(a.memory) for a in again] == [wire.encode(a.memory) for a in answers]
    assert wire.encode(rounds.algorithm.tell(rounds.state, rounds.total(again, 3), 3)) == wire.encode(told)


def test_the_order_of_clients_does_not_change_the_total(rounds):
    answers = rounds.answers(3)
    expected = rounds.total(answers, 3)
    for order in ((2, 1, 0), (1, 2, 0)):
        total = rounds.total([answers[i] for i in order], 3)
        assert total.weight == pytest.approx(expected.weight)
        assert total.clients == expected.clients == len(answers)
        for part, value in expected.value.items():
            lists = isinstance(rounds.plan.reduce, Concat) and part in rounds.plan.reduce.parts
            for (_, a), (_, b) in zip(tree.leaves(value), tree.leaves(total.value[part]), strict=True):
                a, b = np.asarray(a), np.asarray(b)
                if lists:  # candidates side by side: as a set
                    a, b = np.sort(a, axis=None), np.sort(b, axis=None)
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_an_evaluation_changes_nothing(rounds):
    if rounds.algorithm.part_name() == "knn":
        pytest.skip("nearest neighbours are asked, not evaluated on clients")
    params = rounds.algorithm.params(rounds.state)
    message = {"shared": params.shared, "buffers": params.buffers}
    if rounds.plan.learner is None:
        message = rounds.algorithm.ask(rounds.state, 3)
    client = rounds.clients[0]
    memory = rounds.memories.get(client.id)
    before = wire.encode(memory)
    answer = work(rounds.plan, rounds.task(0, message, "evaluate", 3), client, memory)
    assert answer.update.value == {}
    assert answer.update.metrics["examples"] == len(client.holdout)
    assert wire.encode(answer.memory) == before


# ------------------------------------------------------------ a method has its uses


@pytest.mark.parametrize("cls", descents(), ids=lambda cls: cls.part_name())
def test_training_lowers_the_loss(cls):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6))
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    clients = Clients.from_arrays(x, y, np.array_split(np.arange(120), 4))
    torch.manual_seed(0)
    result = train(insitu.Plan(cls.example(), learner=learner("logistic")), clients, Inline(), 8, evaluate=(x, y))
    _, losses = result.history.column("loss")
    assert losses[-1] < 0.8 * losses[0]
