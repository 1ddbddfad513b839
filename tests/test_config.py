"""Configuration files: what they make, and what is said of those that make nothing."""

from __future__ import annotations

import os
import re
import sys
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedprox import FedProx
from insitu.config import load, of_tables, toml
from insitu.core.errors import ConfigError, DataError, MissingExtra
from insitu.core.optim import Adam
from insitu.core.schedules import Cosine
from insitu.engines.inline import Inline
from insitu.learners.numpy import LogisticLearner
from insitu.privacy.clip import Clip
from insitu.reduce.neighbours import Neighbours
from insitu.rounds.buffered import Buffered
from insitu.rounds.cohort import Poisson, Uniform

DOCS = Path(__file__).resolve().parent.parent / "docs" / "command-line.md"
FILE = """
[run]
rounds = 3
store = false

[data]
source = "digits"
partition = { name = "dirichlet", clients = 10, alpha = 0.5 }
holdout = 0.2
test = 0.2

[learner]
name = "logistic"

[algorithm]
name = "fedavg"
"""
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a configuration; ``sys.path`` is as before when the test is over."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "insitu.toml").write_text(FILE, encoding="utf-8")
    return tmp_path


def plan_of(folder, *changes):
    return load(folder / "insitu.toml", changes).plan()


def error_of(folder, *changes, kind=ConfigError):
    with pytest.raises(kind) as caught:
        load(folder / "insitu.toml", changes).build()
    return str(caught.value)


# ---------------------------------------------------------------- what is made


def test_a_file_becomes_a_run(folder):
    built = load(folder / "insitu.toml").build()
    assert built.plan == insitu.Plan(FedAvg(), learner=LogisticLearner())
    assert len(built.clients) == 10
    assert built.clients.has_holdout()
    assert built.options == {"rounds": 3, "seed": 0, "engine": None, "store": None}
    result = insitu.run(built.plan, built.clients, evaluate=built.evaluate, observers=[], **built.options)
    assert result.history[-1]["accuracy"] > 0.5
    assert "clients_accuracy" in result.history[-1]


def test_every_kind_of_part(folder):
    plan = plan_of(
        folder,
        'algorithm={ name = "fedprox", mu = 1, lr = { name = "cosine", lr = 0.1, rounds = 9 }, optimizer = "adam" }',
        "algorithm.server={ name = 'adam', beta1 = 0.5 }",
        "cohort={ name = 'uniform', clients = 4 }",
        "run.evaluate_cohort={ name = 'poisson', rate = 0.5 }",
        "run.evaluate_every=5",
        "run.block=2",
        "policy={ quorum = 0.5, deadline = 90 }",
        "stages=[{ name = 'clip', norm = 2 }]",
        "reduce.name=mean",
    )
    assert plan.algorithm == FedProx(mu=1.0, lr=Cosine(0.1, 9), optimizer="adam", server=Adam(beta1=0.5))
    assert plan.cohort == Uniform(4)
    assert plan.evaluate_cohort == Poisson(0.5)
    assert (plan.evaluate_every, plan.block) == (5, 2)
    assert (plan.policy.quorum, plan.policy.deadline) == (0.5, timedelta(seconds=90))
    assert plan.stages == (Clip(2.0),)
    assert plan.reduce.part_name() == "mean"


def test_what_has_no_name_to_choose(folder):
    assert plan_of(folder, "buffered.size=3").buffered == Buffered(3)
    assert plan_of(folder, 'policy.deadline="00:05:00"').policy.deadline == timedelta(minutes=5)
    assert isinstance(plan_of(folder, "algorithm.name=gossip", "reduce.name=neighbours").reduce, Neighbours)


def test_methods_without_a_learner(folder):
    text = FILE.replace('[learner]\nname = "logistic"\n', "").replace('"fedavg"', '"kmeans"\nk = 10')
    (folder / "insitu.toml").write_text(text, encoding="utf-8")
    assert plan_of(folder).learner is None


def test_engines_and_stores(folder):
    config = load(folder / "insitu.toml", ["run.engine=inline", "run.store=runs/here.db"])
    assert config.engine() == Inline()
    assert config.store() == folder / "runs" / "here.db"
    assert load(folder / "insitu.toml", ["run.engine=auto"]).engine() is None


@needs_torch
def test_engines_with_settings(folder):
    engine = load(folder / "insitu.toml", ["run.engine.name=vectorized", "run.engine.lanes=4"]).engine()
    assert engine.config() == {"name": "vectorized", "lanes": 4, "compile": "auto", "device": None}


def test_what_is_written_is_read_again(folder):
    changes = ["algorithm.lr={ name = 'cosine', lr = 1e-5, rounds = 9 }", "stages=[{ name = 'clip', norm = 2 }]"]
    config = load(folder / "insitu.toml", changes)
    again = folder / "again.toml"
    again.write_text(config.to_toml(), encoding="utf-8")
    assert load(again).to_dict() == config.to_dict()
    assert load(again).plan() == config.plan()
    assert config.to_dict()["run"]["seed"] == 0  # defaults are filled in


def test_toml_says_values_as_toml_does():
    tables = {
        "a": {"text": 'tab\t "quoted" \x7f é', "odd key": True, "none": None, "inf": float("inf"), "list": [1, [2.5]]},
        "b": [{"table": {"deep": "er"}}, {"empty": {}}],
    }
    path_free = toml.dumps(tables)
    import tomllib

    assert tomllib.loads(path_free) == {
        "a": {key: value for key, value in tables["a"].items() if value is not None},
        "b": tables["b"],
    }


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("algorithm.lr=0.5", 0.5),
        ("algorithm.lr = 1", 1.0),
        ('algorithm.lr.name="cosine"', None),
        ("algorithm.batch_size=7", None),
        ("algorithm.optimizer=adam", None),
        ('algorithm.optimizer="adam"', None),
    ],
)
def test_overrides_are_toml_or_bare_words(folder, change, value):
    if "cosine" in change:
        plan = plan_of(folder, change, "algorithm.lr.lr=0.5", "algorithm.lr.rounds=3")
        assert plan.algorithm.lr == Cosine(0.5, 3)
    elif value is not None:
        assert plan_of(folder, change).algorithm.lr == value
    else:
        key, _, said = change.partition("=")
        assert str(getattr(plan_of(folder, change).algorithm, key.partition(".")[2])) == said.strip('"')


def test_overrides_reach_into_names_and_lists(folder):
    changes = ["stages=[{ name = 'clip' }]", "stages.0.norm=3", "algorithm.server=adam", "algorithm.server.beta1=0.5"]
    plan = plan_of(folder, *changes)
    assert plan.stages == (Clip(3.0),)
    assert plan.algorithm.server == Adam(beta1=0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("algorithm.lr", "give TABLE.KEY=VALUE"),
        ("=3", "give TABLE.KEY=VALUE"),
        ("run.rounds.more=3", "there is 3 where 'more' should be a key"),
        ("stages=[1,", "--set stages=[1,: "),
        ("stages.x.norm=3", "'x' is not a place in a list of 1"),
    ],
)
def test_overrides_that_make_no_sense(folder, change, said):
    (folder / "insitu.toml").write_text(FILE + "[[stages]]\nname = 'clip'\n", encoding="utf-8")
    assert said in error_of(folder, change)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("algoritm.lr=1", "insitu.toml: a configuration has no key 'algoritm': did you mean 'algorithm'?"),
        ("algorithm.epoch=1", "insitu.toml, [algorithm]: fedavg has no key 'epoch': did you mean 'epochs'?"),
        ("algorithm.zzz=1", "fedavg has no key 'zzz': there are lr, epochs, steps"),
        ("algorithm.epochs=three", 'insitu.toml, [algorithm] epochs = "three": expected a whole number'),
        ("algorithm.epochs=1.5", "epochs = 1.5: expected a whole number"),
        ("algorithm.epochs=true", "epochs = true: expected a whole number"),
        ("algorithm.lr=fast", "[algorithm.lr]: there is no schedule 'fast': there are exponential, step, cosine"),
        ("algorithm.lr=nan", "[algorithm]: Expected lr=nan to be a finite number"),
        ("algorithm.lr=-1", "insitu.toml, [algorithm]: Expected lr=-1.0 > 0"),
        ("algorithm.lr={ name = 'cosine', lr = 1 }", "[algorithm.lr]: cosine needs the key 'rounds' (a whole number)"),
        ("algorithm.weights=most", 'weights = "most": expected "examples" or "uniform"'),
        ("algorithm.server=adem", "[algorithm.server]: there is no optimizer 'adem': did you mean 'adam'?"),
        ("algorithm.server={ beta1 = 0.5 }", "[algorithm.server]: the key name is missing"),
        ("algorithm.name=fedprx", "algorithms has no 'fedprx': did you mean 'fedprox'?"),
        ("algorithm.name=3", "[algorithm] name = 3: expected text"),
        ("algorithm=fedavg", 'insitu.toml: algorithm = "fedavg": expected a table'),
        ("learner.name=logistics", "[learner]: there is no learner 'logistics': did you mean 'logistic'?"),
        ("learner.classes=1", "[learner]: Expected classes=1 to hold at least two labels"),
        ("learner.name=torch", "[learner]: torch needs the key 'module' (code, such as 'model.py:Net')"),
        ("run.rounds=many", 'insitu.toml, [run] rounds = "many": expected a whole number'),
        ("run.store=true", "[run] store = true: expected text or false"),
        ("run.engine=inlin", "[run.engine]: engines has no 'inlin': did you mean 'inline'?"),
        ("run.engine.name=inline", "[run.engine]: inline has no key 'lanes', nor any other"),
        ("data.source=digit", "[data.source]: there is no data set 'digit': did you mean 'digits'?"),
        ("data.source.scal=true", "[data.source]: digits has no key 'scal': did you mean 'scale'?"),
        ("data.partition=dirichle", "[data.partition]: there is no partition 'dirichle': did you mean 'dirichlet'?"),
        ("data.partition=by_key", "there is no partition 'by_key'"),
        ("data.partition=natural", "the source has no natural clients"),
        ("data.partition.alpha=0", "insitu.toml, [data.partition]: Expected alpha=0.0 > 0"),
        ("data.partition.clients=9999", "Expected clients=9999 times least=1 to be at most the 1438 examples"),
        ("data.holdout=1", "Expected holdout=1.0 < 1"),
        ("data.test=1.0", "[data] test = 1.0: expected a fraction between 0 and 1"),
        ("data.test=0.0001", "that is 0 of 1797 examples"),
        ("cohort.name=unifrom", "[cohort]: there is no cohort 'unifrom': did you mean 'uniform'?"),
        ("cohort.name=uniform", "[cohort]: Uniform(clients=None, fraction=None): give one of clients and fraction"),
        ("policy.quorum=2", "[policy]: Expected 0 <= quorum=2.0 <= 1"),
        ("policy.deadline=soon", 'deadline = "soon": expected a duration (seconds, or "hh:mm:ss")'),
        ("stages=[{ name = 'clap' }]", "[stages]: there is no stage 'clap': did you mean 'clip'?"),
        ("reduce.name=meen", "[reduce]: reduce has no 'meen'"),
        ("buffered.siz=3", "[buffered]: this table has no key 'siz': did you mean 'size'?"),
        ("algorithm.name=knn", "[algorithm]: "),
    ],
)
def test_errors_name_the_place_and_the_nearest_right_word(folder, change, said):
    changes = [change] if "engine.name" not in change else [change, "run.engine.lanes=3"]
    if change == "algorithm.name=knn":
        changes.append("algorithm.lr=1")
    assert said in error_of(folder, *changes)


def test_parts_that_do_not_fit(folder):
    text = (folder / "insitu.toml").read_text(encoding="utf-8").replace('[learner]\nname = "logistic"\n', "")
    (folder / "insitu.toml").write_text(text, encoding="utf-8")
    assert error_of(folder).startswith("insitu.toml: FedAvg trains a model")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run]\nrounds = 0,1\n", "bad.toml, line 2: `rounds = 0,1`: "),
        ("[run]\n[run]\n", "bad.toml, line 2: `[run]`: "),
        ("[run\n", "bad.toml, line 1: `[run`: "),
        ('[run]\nstore = "', 'bad.toml, line 2: `store = "`: '),
        ("", "bad.toml: a configuration needs the key 'run' (a table)"),
    ],
)
def test_text_that_is_not_toml(tmp_path, text, said):
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(tmp_path / "bad.toml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"[run] # \xe9")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        load(tmp_path / "latin.toml")


# ---------------------------------------------------------------- the user's code


CODE = """
import numpy as np
from insitu.data import Clients, DataSet

def arrays(n: int = 60, **more):
    random = np.random.default_rng(0)
    return random.normal(size=(n, 3)), random.integers(0, 3, n)

def named():
    x, y = arrays()
    return x, np.array(["a", "b", "c"])[y]

def keyed(hospitals: int = 4):
    x, y = arrays()
    return DataSet("own", x, y, keys=np.arange(60) % hospitals)

def clients():
    x, y = arrays()
    return Clients.from_arrays(x, y, [range(30), range(30, 60)])

def unlabelled():
    return arrays()[0], None

def wrong():
    return {"x": 1}

def broken(n=3):
    ratio = n / 0
    return ratio

number = 7
"""


@pytest.fixture
def coded(folder):
    (folder / "own_data.py").write_text(CODE, encoding="utf-8")
    return folder


def population_of(folder, *changes):
    return load(folder / "insitu.toml", changes).population()


def test_arrays_of_the_users(coded):
    clients, test = population_of(coded, "data.source=own_data.py:arrays", "data.source.n=90")
    assert len(clients.pooled().y) + len(clients.pooled(holdout=True).y) + len(test.y) == 90
    assert clients.schema().features == (3,)


def test_labels_that_are_text(coded):
    clients, test = population_of(coded, "data.source=own_data.py:named")
    assert list(clients.schema().classes) == ["a", "b", "c"]
    assert set(test.y) == {"a", "b", "c"}


def test_natural_clients_of_the_users(coded):
    text = FILE.replace('"digits"', '"own_data.py:keyed"')
    text = text.replace('partition = { name = "dirichlet", clients = 10, alpha = 0.5 }\n', "")
    (coded / "insitu.toml").write_text(text, encoding="utf-8")
    clients, test = population_of(coded)
    assert list(clients.ids) == ["0", "1", "2", "3"]
    assert len(test) == 12


def test_clients_of_the_users_are_made_already(coded):
    text = '[run]\nrounds = 1\n[data]\nsource = "own_data.py:clients"\n[algorithm]\nname = "knn"\n'
    (coded / "insitu.toml").write_text(text, encoding="utf-8")
    clients, test = population_of(coded)
    assert (len(clients), test) == (2, None)
    for change in ("data.test=0.2", "data.holdout=0.2", "data.partition=natural"):
        assert "the source gives clients, which are made already" in error_of(coded, change)


def test_examples_without_labels(coded):
    clients, _ = population_of(coded, "data.source=own_data.py:unlabelled", 'data.partition={name="iid",clients=4}')
    assert len(clients) == 4
    said = error_of(coded, "data.source=own_data.py:unlabelled")
    assert "[data.partition]" in said


def test_modules_by_their_name(coded):
    clients, _ = population_of(coded, "data.source=own_data:arrays")
    assert len(clients) == 10
    learner = plan_of(coded, 'learner={ name = "insitu.learners.numpy:LogisticLearner", l2 = 1 }').learner
    assert learner == LogisticLearner(l2=1.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("own_data.py:array", "own_data.py has no 'array': did you mean 'arrays'?"),
        ("own_dat.py:arrays", "did you mean 'own_data.py'?"),
        ("no_such_module:f", "there is no module 'no_such_module': give file.py:object for a file of your own"),
        ("own_data.py:number", "it is a int, expected a class"),
        ("own_data.py:wrong", "own_data.py:wrong returned dict: return (x, y), a DataSet or Clients"),
        ("own_data.py:broken", "ZeroDivisionError: division by zero (own_data.py, line 28: ratio = n / 0)"),
    ],
)
def test_code_that_does_not_work(coded, source, said):
    assert said in error_of(coded, f"data.source={source}")


def test_arguments_of_the_users_functions_are_checked(coded):
    said = error_of(coded, "data.source=own_data.py:keyed", "data.source.hospital=3")
    assert "own_data.py:keyed has no key 'hospital': did you mean 'hospitals'?" in said
    said = error_of(coded, "data.source=own_data.py:keyed", "data.source.hospitals=few")
    assert '[data.source] hospitals = "few": expected a whole number' in said


def test_files_that_do_not_compile_show_their_line(coded):
    (coded / "typo.py").write_text("x = 1\ndef f(:\n    pass\n", encoding="utf-8")
    assert "SyntaxError: invalid syntax (typo.py, line 2: def f(:)" in error_of(coded, "data.source=typo.py:f")
    (coded / "fails.py").write_text("import json\njson.loads('{')\n", encoding="utf-8")
    assert "(fails.py, line 2: json.loads('{'))" in error_of(coded, "data.source=fails.py:f")


def test_two_files_of_one_name_are_two_modules(coded, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "own_data.py").write_text("def arrays(): return [[0.0]] * 20, [0, 1] * 10", encoding="utf-8")
    assert len(population_of(coded, "data.source=own_data.py:arrays")[0]) == 10
    clients, _ = population_of(coded, "data.source=other/own_data.py:arrays", "data.partition={name='iid',clients=2}")
    assert clients.schema().features == (1,)


def test_a_file_named_like_a_library_does_not_replace_it(coded):
    (coded / "random.py").write_text("def load(): return [[0.0], [1.0]], [0, 1]", encoding="utf-8")
    import random

    assert error_of(coded, "data.source=random.py:load", "data.partition.clients=3")
    assert sys.modules["random"] is random


def test_an_algorithm_of_the_users(coded):
    text = (
        "from dataclasses import dataclass\nfrom insitu.core.local_sgd import LocalSGD\n"
        "@dataclass(frozen=True, kw_only=True)\nclass FedFoo(LocalSGD):\n    strength: float = 1.0\n"
        "    @classmethod\n    def example(cls): return cls()\n"
    )
    (coded / "fedfoo.py").write_text(text, encoding="utf-8")
    plan = plan_of(coded, "algorithm.name=fedfoo.py:FedFoo", "algorithm.strength=2")
    assert plan.algorithm.strength == 2.0
    assert "fedfoo.py:FedFoo has no key 'strenght'" in error_of(
        coded, "algorithm.name=fedfoo.py:FedFoo", "algorithm.strenght=2"
    )


def test_an_optimizer_of_the_users(coded):
    text = (
        "from dataclasses import dataclass\nfrom insitu.core.optim import Sgd\n"
        "@dataclass(frozen=True)\nclass Mine(Sgd):\n    pass\n"
    )
    (coded / "mine.py").write_text(text, encoding="utf-8")
    for change in ("algorithm.optimizer=mine.py:Mine", 'algorithm.optimizer={ name = "mine.py:Mine" }'):
        assert type(plan_of(coded, change).algorithm.optimizer).__name__ == "Mine"


def test_black_boxes(coded):
    learner = (
        'learner={ name = "sklearn", estimator = "sklearn.linear_model:SGDClassifier", arguments = { alpha = 1 } }'
    )
    plan = plan_of(coded, learner)
    assert plan.learner.config()["params"]["alpha"] == 1
    text = (
        "import numpy as np\n\nclass Mean:\n    def __init__(self, size=3): self.w = np.zeros(size)\n"
        "    def fit(self, x, y): self.w = x.mean(0)\n    def get_params(self): return self.w\n"
        "    def set_params(self, w): self.w = w\n\nmade = Mean(4)\n"
    )
    (coded / "boxes.py").write_text(text, encoding="utf-8")
    plan = plan_of(coded, 'learner={ name = "estimator", obj = "boxes.py:Mean", arguments = { size = 5 } }')
    assert plan.learner.obj.w.shape == (5,)
    plan = plan_of(coded, 'learner={ name = "estimator", obj = "boxes.py:made" }')
    assert plan.learner.obj.w.shape == (4,)
    said = error_of(coded, 'learner={ name = "estimator", obj = "boxes.py:made", arguments = { size = 5 } }')
    assert "is an object, not a class: leave arguments out" in said


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x):
        return self.layers(x)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Linear(3)

def loss(output, y):
    return nn.functional.cross_entropy(output, y, reduction="none")
"""


@needs_torch
def test_modules_of_the_users(coded):
    (coded / "own_model.py").write_text(NET, encoding="utf-8")
    module = 'learner={ name = "torch", module = "own_model.py:Net", arguments = { hidden = 4 } }'
    learner = plan_of(coded, module).learner
    assert learner.init(0).shared["layers.0.weight"].shape == (4, 64)
    # Its first weights are the run's: another seed gives others.
    first, second = (learner.init(seed).shared["layers.0.weight"] for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert learner.config()["module"] == {"object": "own_model.py:Net", "arguments": {"hidden": 4}}
    plan = plan_of(coded, module, "learner.loss=own_model.py:loss", 'learner.metrics=["accuracy", "own_model.py:loss"]')
    assert plan.learner.metric_names == ("loss", "accuracy", "loss")
    said = error_of(coded, module, "learner.arguments.hiden=4")
    assert "[learner.arguments]: Net has no key 'hiden': did you mean 'hidden'?" in said
    said = error_of(coded, 'learner={ name = "torch", module = "own_model.py:Broken" }')
    assert "NameError: name 'Linear' is not defined (own_model.py, line 15: self.layer = Linear(3))" in said


def test_a_library_of_an_extra_is_asked_for(coded, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    (coded / "frames.py").write_text("import pandas\n", encoding="utf-8")
    assert "pip install 'insitu[frames]'" in error_of(coded, "data.source=frames.py:load", kind=MissingExtra)


# ---------------------------------------------------------------- data


def test_a_test_set_keeps_each_class_its_share(folder):
    _, test = population_of(folder, "data.test=0.1")
    assert len(test) == pytest.approx(180, abs=5)
    assert np.bincount(test.y).min() >= 17
    again, _ = population_of(folder, "data.test=0.1")
    assert not set(test.rows or ()) & set(again.pooled().rows)


def test_no_example_is_in_two_places(coded):
    text = "import numpy as np\ndef load(): return np.arange(200.0)[:, None], np.arange(200) % 4\n"
    (coded / "counted.py").write_text(text, encoding="utf-8")
    clients, test = population_of(coded, "data.source=counted.py:load")
    every = [clients.pooled().x, clients.pooled(holdout=True).x, test.x]
    assert sorted(np.concatenate(every).ravel()) == list(range(200))


def test_seeds_of_the_data_are_not_the_runs(folder):
    one, other = (population_of(folder, f"run.seed={seed}")[1] for seed in (0, 1))
    assert np.array_equal(one.x, other.x)
    assert not np.array_equal(one.x, population_of(folder, "data.seed=1")[1].x)


def test_files_that_are_not_there_say_where_they_can_be_had(folder):
    said = error_of(folder, 'data.source={ name = "mnist", root = "nowhere" }', kind=DataError)
    assert str(folder / "nowhere" / "mnist") in said


def test_tables_need_no_file():
    config = of_tables({"run": {"rounds": 1}, "data": {"source": "iris"}, "algorithm": {"name": "knn"}})
    with pytest.raises(ConfigError, match=r"the configuration, \[data\.partition\]: the source does not say who has"):
        config.build()


# ---------------------------------------------------------------- the documentation


PROGRAMS = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_the_pages_programs_run(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(program, DOCS.name, "exec"), {})
    assert len(os.listdir(tmp_path)) == 1


BLOCKS = re.findall(r"^```toml\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_pages_examples_are_configurations(block, folder):
    """Each is a whole file, or tables that replace those of one."""
    import tomllib

    if find_spec("torch") is None and "torch" in block:
        pytest.skip("needs torch")
    (folder / "model.py").write_text(NET, encoding="utf-8")
    (folder / "data.py").write_text(CODE.replace("def arrays", "load = lambda n=60: arrays(n)\ndef arrays"), "utf-8")
    config = of_tables({**tomllib.loads(FILE), **tomllib.loads(block)}, (), load(folder / "insitu.toml").place)
    config.plan()
    config.engine()
