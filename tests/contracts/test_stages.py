"""What every compressor promises, tried with each file found in ``insitu.compress``; and what every stage does."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch
from contract_cases import engines, far, flat, learner, ragged, train, worker_engines
from hypothesis import given, settings
from hypothesis import strategies as st

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.gossip import Gossip
from insitu.algorithms.kmeans import KMeans
from insitu.core import arrays, tree, wire
from insitu.core.compressor import Compressor
from insitu.core.errors import PlanError, UpdateError
from insitu.core.protocols import Stage
from insitu.core.types import Context, Update
from insitu.engines.inline import Inline
from insitu.learners.numpy import LogisticLearner
from insitu.names import find, members

COMPRESSORS = [find("compress", name) for name in members("compress")]
STAGES = [*COMPRESSORS, *(find("privacy", name) for name in members("privacy"))]
every = pytest.mark.parametrize("cls", COMPRESSORS, ids=lambda cls: cls.part_name())
every_stage = pytest.mark.parametrize(
    "cls", [s for s in STAGES if issubclass(s, Stage)], ids=lambda cls: cls.part_name()
)
KINDS = {
    "numpy-float64": lambda x: x,
    "numpy-float32": lambda x: x.astype(np.float32),
    "numpy-float16": lambda x: x.astype(np.float16),
    "torch-float64": torch.from_numpy,
    "torch-float32": lambda x: torch.from_numpy(x).float(),
    "torch-bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
}
WIDE = ["numpy-float64", "numpy-float32", "torch-float64", "torch-float32"]
kinds = pytest.mark.parametrize("kind", WIDE)
SHAPES = {"wide": (30, 20), "picture": (7, 3, 3, 3), "bias": (11,), "odd": (301,), "one": (), "none": (0, 4)}


def update(kind="numpy-float64", seed=0) -> Update:
    """Names that could be taken for a packed leaf's, an integer leaf, buffers, and a part that is not trained."""
    rng = np.random.default_rng(seed)
    shared = {name: np.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    shared = tree.map(KINDS[kind], {**shared, "plain": {"form": rng.normal(size=(9, 9))}, "empty": {}})
    like = tree.first_leaf(shared)
    count = torch.tensor([7, 8]) if isinstance(like, torch.Tensor) else np.array([7, 8])
    value = {"shared": {**shared, "count": count}, "buffers": {"mean": rng.normal(size=100)}, "other": {"x": count}}
    return Update(value, {"shared": 3.0, "buffers": 3.0, "other": 1.0}, {"examples": 3.0})


def context(round=1, client="a") -> Context:
    return Context(round, 0, seed=5, client=client)


def told(stage, given, memory=None, at=None):
    """What is told, what the server reads of it, and what the client remembers."""
    at = at or context()
    packed, memory = stage.encode(given, memory, at)
    return packed, stage.decode_each(packed, at), memory


def vector(given) -> np.ndarray:
    return tree.flatten(given.value["shared"])


def example(cls, **changes):
    return dataclasses.replace(cls.example(), **changes)


# ------------------------------------------------------------ what it says of itself


@every
def test_it_says_what_it_is(cls):
    text = inspect.getdoc(cls)
    assert ".. math::" in text
    assert "Reference" in text
    assert "Bytes:" in text
    made = cls.example()
    assert issubclass(cls, Compressor)
    assert made.config()["name"] == cls.part_name()
    assert cls(**{k: v for k, v in made.config().items() if k != "name"}) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.smallest = 3


BAD = {
    "feedback": (None, "yes", 2),
    "smallest": (-1, 2.5, True),
    "fraction": (0, -0.1, 1.5, float("nan"), "all"),
    "bits": (2, 16, "8"),
    "group": (0, 2.5),
    "rank": (0, 1.5),
    "dtype": ("float8", None),
    "unbiased": (None, 3),
}


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [(cls, f.name, value) for cls in COMPRESSORS for f in dataclasses.fields(cls) for value in BAD[f.name]],
)
def test_a_bad_argument_is_refused_by_name_and_value(cls, name, value):
    with pytest.raises(PlanError) as refused:
        cls(**{name: value})
    assert name in str(refused.value)
    assert str(value) in str(refused.value)


# ------------------------------------------------------------ pure, and at home on the wire


@every_stage
@pytest.mark.parametrize("kind", KINDS)
def test_both_halves_are_pure_and_survive_the_wire(cls, kind):
    stage = cls.example() if issubclass(cls, Compressor) else cls()
    given, memory = update(kind), None
    if not issubclass(cls, Compressor):
        given = Update({**given.value, "shared": {"wide": given.value["shared"]["wide"]}}, given.weight, given.metrics)
    for round in (1, 2, 3):
        before = wire.encode([given.value, memory])
        packed, after = stage.encode(given, memory, context(round))
        again, same = stage.encode(given, memory, context(round))
        assert wire.encode([again.value, same]) == wire.encode([packed.value, after])
        assert wire.encode([given.value, memory]) == before
        sent = wire.encode(packed.value)
        read = stage.decode_each(packed, context(round))
        assert wire.encode(packed.value) == sent
        there = stage.decode_each(Update(wire.decode(sent), packed.weight, packed.metrics), context(round))
        assert wire.encode(there.value) == wire.encode(read.value)
        assert (read.weight, read.metrics) == (given.weight, given.metrics)
        memory = wire.decode(wire.encode(after))


@every
@pytest.mark.parametrize("kind", KINDS)
def test_names_shapes_and_dtypes_come_back_and_only_trained_numbers_are_touched(cls, kind):
    given = update(kind)
    packed, read, _ = told(cls.example(), given)
    before, after = dict(tree.leaves(given.value)), dict(tree.leaves(read.value))
    assert list(after) == list(before)
    for path, leaf in before.items():
        assert (after[path].shape, after[path].dtype, type(after[path])) == (leaf.shape, leaf.dtype, type(leaf)), path
    for path in ("shared/count", "buffers/mean", "other/x", "shared/none"):
        np.testing.assert_array_equal(arrays.asnumpy(after[path]), arrays.asnumpy(before[path]))
    assert packed.value["buffers"] is given.value["buffers"]
    assert read.value["shared"]["empty"] == {}


@every
@kinds
def test_small_leaves_travel_as_they_are(cls, kind):
    given = update(kind)
    _, read, _ = told(example(cls, smallest=12), given)
    np.testing.assert_array_equal(read.value["shared"]["bias"], given.value["shared"]["bias"])
    assert np.abs(tree.flatten({"x": read.value["shared"]["wide"]}) - tree.flatten({"x": given.value["shared"]["wide"]})).max() > 0  # fmt: skip


@every
def test_numpy_and_torch_lose_the_same_bits(cls):
    for width in ("float32", "float64"):
        a, b = (told(cls.example(), update(f"{kind}-{width}")) for kind in ("numpy", "torch"))
        np.testing.assert_array_equal(vector(a[1]), vector(b[1]))
        assert tree.nbytes(a[0].value) == tree.nbytes(b[0].value)


@every
def test_what_was_not_packed_like_this_is_refused_by_name(cls):
    stage = cls.example()
    packed, _ = stage.encode(update(), None, context())
    with pytest.raises(UpdateError, match=r"client 'a'.*shared.*the server's plan"):
        stage.decode_each(update(), context())
    with pytest.raises(UpdateError, match=r"client 'a'.*shared.*the server's plan"):
        stage.decode_each(Update({"shared": np.ones(3)}, {"shared": 1.0}), context())
    for key in packed.value["shared"]["wide"]:
        for odd in (np.zeros(3, np.complex64), np.zeros((0, 31, 20)), "text"):
            leaf = {**packed.value["shared"]["wide"], key: odd}
            bad = Update({"shared": {"wide": leaf}}, {"shared": 1.0})
            with pytest.raises(UpdateError, match=r"client 'a'.*shared/wide"):
                stage.decode_each(bad, context())


# ------------------------------------------------------------ the bytes


def formula(stage, shape: tuple[int, ...], w: int) -> int:
    """The docstrings' formulas, written down once more."""
    n, name = int(np.prod(shape)), stage.part_name()
    if name == "half":
        return 2 * n
    if name == "quantize":
        return int(np.ceil(n * stage.bits / 8)) + w * int(np.ceil(n / stage.group))
    if name == "signs":
        return int(np.ceil(n / 8)) + w
    if name == "powersgd":
        return w * stage.rank * (shape[0] + n // shape[0]) if len(shape) > 1 and n else w * n
    k = max(1, round(stage.fraction * n))
    if name == "randomk":
        return w * k
    assert name == "topk", f"teach this test the bytes of {name}"
    places = [int(np.ceil(n / 8))] + [v * (k + int(np.ceil(n / (256**v - 1)))) for v in (1, 2, 4)]
    return w * k + min(places)


OTHERS = {
    "quantize": [{"bits": 8}, {"bits": 8, "group": 100}, {"bits": 4, "group": 7}],
    "topk": [{"fraction": 0.01}, {"fraction": 0.001}, {"fraction": 0.9}, {"fraction": 0.3}],
    "randomk": [{"fraction": 0.01}, {"fraction": 0.4, "feedback": False, "unbiased": True}],
    "powersgd": [{"rank": 2}, {"rank": 4}],
    "half": [{"dtype": "float16"}],
}


def instances():
    for cls in COMPRESSORS:
        for changes in ({}, *OTHERS.get(cls.part_name(), ())):
            yield pytest.param(example(cls, **changes), id=f"{cls.part_name()}-{changes}")


@pytest.mark.parametrize("stage", list(instances()))
@pytest.mark.parametrize("kind", WIDE)
def test_the_bytes_are_those_of_the_formula(stage, kind):
    rng, w = np.random.default_rng(1), 8 if "64" in kind else 4
    for shape in [*SHAPES.values(), (70_000,), (300, 300), (256,), (255,), (16, 16, 3, 3)]:
        x = KINDS[kind](np.asarray(rng.normal(size=shape)))
        packed, _ = stage.encode(Update({"shared": {"x": x}}, {"shared": 1.0}), None, context())
        n = int(np.prod(shape))
        assert tree.nbytes(packed.value) == min(formula(stage, shape, w), w * n), shape


# ------------------------------------------------------------ unbiased where it is random


RANDOM = [
    find("compress", "quantize")(bits=8, group=16, smallest=0),
    find("compress", "quantize")(bits=4, group=16, smallest=0),
    find("compress", "randomk")(fraction=0.25, unbiased=True, feedback=False, smallest=0),
]


@pytest.mark.parametrize("stage", RANDOM, ids=lambda stage: f"{stage.part_name()}")
def test_the_mean_over_draws_is_the_update(stage):
    """Each of 64 means within 5 standard errors; a bias of a tenth of a step would be 12."""
    x = np.random.default_rng(0).normal(size=64)
    given, draws = Update({"shared": {"x": x}}, {"shared": 1.0}), 4000
    read = np.stack([told(stage, given, at=context(round))[1].value["shared"]["x"] for round in range(draws)])
    error = np.abs(read.mean(axis=0) - x) / (read.std(axis=0) / np.sqrt(draws) + 1e-12)
    exact = read.std(axis=0) == 0  # the largest of a group is a level itself
    np.testing.assert_allclose(read[0][exact], x[exact], rtol=1e-12)
    assert error[~exact].max() < 5
    assert (~exact).sum() >= 32


@pytest.mark.parametrize("stage", RANDOM, ids=lambda stage: f"{stage.part_name()}")
def test_draws_differ_by_round_client_and_leaf_and_by_nothing_else(stage):
    x = np.random.default_rng(0).normal(size=64)
    given = Update({"shared": {"a": x, "b": x}}, {"shared": 1.0})
    at = [context(1, "a"), context(2, "a"), context(1, "b"), Context(1, 9, seed=6, client="a")]
    read = [told(stage, given, at=one)[1].value["shared"][leaf] for one in at for leaf in ("a", "b")]
    assert len({x.tobytes() for x in read}) == len(read)


# ------------------------------------------------------------ error feedback


def exactly(values) -> list[Fraction]:
    return [Fraction(float(x)) for x in np.asarray(values).reshape(-1)]


@every
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rounds=st.integers(1, 6))
def test_what_was_told_and_what_is_left_is_what_was_meant(cls, seed, rounds):
    """In every round and over all of them; in whole numbers of one 2⁻¹⁰ nothing is rounded, so exactly, where the
    compressor itself rounds nothing that it tells."""
    stage = example(cls, feedback=True, **({"unbiased": False} if cls.part_name() == "randomk" else {}))
    rng, memory = np.random.default_rng(seed), None
    meant_in_all, told_in_all = np.zeros((9, 5)), np.zeros((9, 5))
    for round in range(1, rounds + 1):
        x = rng.integers(-1000, 1000, size=(9, 5)) / 1024
        given = Update({"shared": {"x": x}}, {"shared": 1.0})
        before = memory["shared"]["x"]["lost"] if memory else np.zeros((9, 5))
        _, read, memory = told(stage, given, memory, context(round))
        lost = memory["shared"]["x"]["lost"]
        meant_in_all, told_in_all = meant_in_all + x, told_in_all + read.value["shared"]["x"]
        if cls.part_name() in ("topk", "randomk", "half"):
            pairs = zip(*map(exactly, (x, before, read.value["shared"]["x"], lost)), strict=True)
            assert all(new + left == said + rest for new, left, said, rest in pairs)
        np.testing.assert_allclose(told_in_all + lost, meant_in_all, rtol=0, atol=1e-13)


@every
def test_memory_is_kept_only_where_it_is_of_use(cls):
    stage = example(cls, feedback=False)
    _, _, memory = told(stage, update())
    kept = {path.rpartition("/")[2] for path, _ in tree.leaves(memory or {})}
    assert kept == ({"q"} if cls.part_name() == "powersgd" else set())


@every
def test_leaves_that_are_not_told_this_time_keep_what_is_left_of_them(cls):
    """A method may tell its model in fragments that take turns."""
    stage = example(cls, feedback=True, **({"unbiased": False} if cls.part_name() == "randomk" else {}))
    x = np.random.default_rng(0).normal(size=(9, 5))
    _, first = stage.encode(Update({"shared": {"a": x}}, {"shared": 1.0}), None, context(1))
    _, second = stage.encode(Update({"shared": {"b": x}}, {"shared": 1.0}), first, context(2))
    assert second["shared"]["a"] is first["shared"]["a"]
    assert set(second["shared"]) == {"a", "b"}


# ------------------------------------------------------------ runs: engines, resuming


def plan(cls, dtype=torch.float64, algorithm=None, **more):
    algorithm = algorithm or FedAvg(lr=0.1, epochs=1, batch_size=4)
    return insitu.Plan(algorithm, learner=learner("perceptron", dtype), stages=(cls.example(),), block=3, **more)


@functools.cache
def meant(cls):
    return train(plan(cls), ragged("perceptron"), Inline(), 4)


@every
@pytest.mark.parametrize("engine", ["debug", "vectorized-1", "vectorized-3", "vectorized-16"])
def test_engines_agree_on_the_model_and_on_every_byte(cls, engine):
    expected, found = meant(cls), train(plan(cls), ragged("perceptron"), engines()[engine], 4)
    assert far(flat(expected), flat(found)) <= 1e-9
    assert [row["bytes_up"] for row in found.history] == [row["bytes_up"] for row in expected.history]
    shapes = [(8, 6), (8,), (3, 8), (3,)]
    each = sum(min(formula(cls.example(), shape, 8), 8 * int(np.prod(shape))) for shape in shapes)
    assert [row["bytes_up"] for row in found.history] == [8 * each] * 4
    assert each < 8 * sum(int(np.prod(shape)) for shape in shapes)


def test_workers_agree_on_the_model_on_every_byte_and_on_every_bit():
    """All compressors in turn would start as many processes; the one with most memory and a random one will do."""
    for name in ("powersgd", "quantize"):
        cls = find("compress", name)
        found = [train(plan(cls), ragged("perceptron"), engines()[engine], 4) for engine in worker_engines()[:2]]
        for result in found:
            assert far(flat(meant(cls)), flat(result)) <= 1e-9
            np.testing.assert_array_equal(flat(result), flat(found[0]))
            assert [row["bytes_up"] for row in result.history] == [row["bytes_up"] for row in meant(cls).history]


@every
@pytest.mark.parametrize("engine", ["inline", "vectorized-3"])
def test_a_resumed_run_has_the_same_bits(cls, engine, tmp_path):
    """Feedback and warm starts are in the clients' memories, and come back with them."""
    chosen, clients = plan(cls, torch.float32, cohort=insitu.Uniform(5)), ragged("perceptron")
    whole = train(chosen, clients, engines()[engine], 5)
    some = {"engine": engines()[engine], "seed": 11, "observers": [], "store": tmp_path / "runs.db"}
    first = insitu.run(chosen, clients, rounds=2, **some)
    then = insitu.run(chosen, clients, rounds=5, resume=first.id, **some)
    np.testing.assert_array_equal(flat(then), flat(whole))
    assert wire.digest(then.memories) == wire.digest(whole.memories)


# ------------------------------------------------------------ plans


@every
def test_a_plan_without_a_model_is_refused(cls):
    with pytest.raises(PlanError, match="KMeans"):
        insitu.Plan(KMeans(k=2), stages=(cls.example(),))


@every
def test_gossip_tells_parameters_so_changes_only_are_refused(cls):
    made = functools.partial(insitu.Plan, Gossip(), LogisticLearner(4, 3), stages=(cls.example(),))
    if cls.part_name() in ("half", "quantize"):
        assert made().stages == (cls.example(),)
    else:
        with pytest.raises(PlanError, match=r"Gossip.*Choco"):
            made()
